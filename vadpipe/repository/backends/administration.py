"""A bucket that keeps what was written: versions of objects, and retention that nobody can shorten (object lock).

Backups need none of this; it is for whoever sets up the bucket, with rights that a backup does not have. It uses
boto3 (the extra `s3-admin`), because obstore knows neither versions nor retention.

Retention belongs to a version of an object. A thief who may write can put another version, or a delete marker, over
a locked one: the locked version is still there. `histories` finds it, and `put_back` makes it current again.
The server orders them, so nobody can make a version that is older than the first one. Times are those of the
server, too; radosgw 16 tells as the time of a version when its retention was last changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pipeline import ConfigError, SinkError

from .contract import checked_name, checked_prefix
from .s3_location import ENVIRONMENT, S3Location

log = logging.getLogger(__name__)

MODES: Final = ("COMPLIANCE", "GOVERNANCE")

_AT_ONCE: Final = 16  # requests about single objects; each takes as long as an answer of the server

T = TypeVar("T")
R = TypeVar("R")

_RIGHTS: Final = (
    "Use a key that may do this: s3:CreateBucket, s3:PutBucketVersioning, s3:PutBucketObjectLockConfiguration, "
    "s3:GetBucketVersioning, s3:GetBucketObjectLockConfiguration, s3:ListBucketVersions, s3:GetObjectRetention, "
    "s3:PutObjectRetention; to put versions back s3:GetObjectVersion, s3:PutObject and s3:DeleteObjectVersion."
)


_MADE_WITH: Final = (
    "Object lock is chosen when a bucket is made: make another one (vadpipe object-lock prepare --make --days N), "
    "and copy the repository into it (vadpipe copy)."
)


@dataclass(frozen=True)
class Version:
    """One version of an object: its id, its size in bytes, and when it was written (seconds since 1970, by the
    clock of the server).

    Args:
        latest: Whether it is the current one.
        etag: Of equal content it is equal, but for some kinds of encryption in the server.
    """

    name: str
    version_id: str
    size: int
    modified: float
    latest: bool = False
    etag: str = ""


@dataclass(frozen=True)
class Marker:
    """A delete marker: its id, and when the object was deleted (seconds since 1970, by the clock of the server)."""

    version_id: str
    modified: float


@dataclass(frozen=True)
class History:
    """Everything that lies under one name, each newest first."""

    name: str
    versions: tuple[Version, ...]
    markers: tuple[Marker, ...] = ()

    @property
    def current(self) -> Version | None:
        """What a reader gets; None: it is deleted."""
        return next((version for version in self.versions if version.latest), None)

    def version(self, version_id: str) -> Version | None:
        return next((version for version in self.versions if version.version_id == version_id), None)


@dataclass(frozen=True)
class LockSettings:
    """What a bucket does by itself.

    Args:
        versions: Whether it keeps versions.
        lock: Whether versions can be locked.
        mode: Of the default retention of new versions; "": there is none.
        days: Of the default retention; a year counts as 365 days.
    """

    versions: bool
    lock: bool
    mode: str = ""
    days: int = 0


class S3Administration:
    """What is done to a bucket with more rights than a backup has. Every method raises SinkError."""

    def __init__(self, location: S3Location) -> None:
        """
        Raises:
            ConfigError: boto3 is not installed, or the endpoint is wrong.
        """
        self.location = location
        try:
            import boto3  # type: ignore[import-untyped]
            from botocore.config import Config  # type: ignore[import-untyped]
        except ImportError as exc:
            raise ConfigError(
                "Object lock and versions need the library boto3, and it is not installed.",
                remedy="Install it with: pip install 'vadpipe[s3-admin]'",
            ) from exc
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=location.endpoint_url() or None,
            region_name=location.region or None,
            verify=str(location.ca) if location.ca else None,
            config=Config(
                request_checksum_calculation="when_required",
                max_pool_connections=_AT_ONCE,
                s3={"addressing_style": "path"} if location.endpoint_url() else {},
            ),
        )

    def close(self) -> None:
        self._client.close()

    def prepare_bucket(
        self, *, make: bool = False, retention_days: int | None = None, mode: str = "COMPLIANCE"
    ) -> None:
        """Switch on versions, and object lock with a default retention. Doing it again changes nothing.

        Args:
            make: Make the bucket, so that versions can be locked.
            retention_days: How long each new version cannot be removed; None: it is not locked by itself.
            mode: `COMPLIANCE`: nobody can shorten it; `GOVERNANCE`: whoever has the right to.

        Raises:
            ConfigError: The mode or the days are wrong.
            SinkError
        """
        if mode not in MODES or (retention_days is not None and retention_days < 1):
            raise ConfigError(
                "A retention has one day at least, and the mode COMPLIANCE or GOVERNANCE.",
                remedy="Correct it.",
            )
        bucket = {"Bucket": self.location.bucket}
        if make:
            with self._errors("make the bucket of"):
                self._client.create_bucket(**bucket, ObjectLockEnabledForBucket=True)
        with self._errors("switch on versions in"):
            self._client.put_bucket_versioning(**bucket, VersioningConfiguration={"Status": "Enabled"})
        if retention_days is None:
            return
        with self._errors("set the retention of"):
            self._client.put_object_lock_configuration(
                **bucket,
                ObjectLockConfiguration={
                    "ObjectLockEnabled": "Enabled",
                    "Rule": {"DefaultRetention": {"Mode": mode, "Days": retention_days}},
                },
            )

    def settings(self) -> LockSettings:
        """What the bucket does by itself."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        bucket = {"Bucket": self.location.bucket}
        with self._errors("read the settings of"):
            versions = self._client.get_bucket_versioning(**bucket).get("Status") == "Enabled"
            try:
                found = self._client.get_object_lock_configuration(**bucket)["ObjectLockConfiguration"]
            except ClientError as exc:
                if _code(exc) not in _NO_LOCK:
                    raise
                return LockSettings(versions, lock=False)
        rule = found.get("Rule", {}).get("DefaultRetention", {})
        days = int(rule.get("Days", 0)) + 365 * int(rule.get("Years", 0))
        lock = found.get("ObjectLockEnabled") == "Enabled"
        return LockSettings(versions, lock, str(rule.get("Mode", "")), days)

    def histories(self, prefix: str = "") -> Iterator[History]:
        """What lies under each name that begins with `prefix`, ascending by name. Names that no object of a
        repository can have are left out."""
        checked_prefix(prefix)
        start = f"{self.location.prefix}/" if self.location.prefix else ""
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self.location.bucket, Prefix=start + prefix
        )
        with self._errors("list the versions of"):
            yield from grouped(pages, start)

    def versions(self, prefix: str = "") -> Iterator[Version]:
        """Every version of every object whose name begins with `prefix`, ascending by name, newest first."""
        for history in self.histories(prefix):
            yield from history.versions

    def recorded_versions(self, prefix: str = "") -> Mapping[str, str]:
        """Per name the id of its oldest version: what a repository wrote, since it writes each name once.

        Hints and signs of life are replaced, so of these it is an old one.
        """
        return {found.name: found.version_id for found in self.versions(prefix)}  # the last one is the oldest

    def read(self, name: str, version_id: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a version, as of `Backend.read`."""
        if length == 0:
            return b""
        end = "" if length is None else offset + length - 1
        ranged = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}
        with self._errors("read", name):
            try:
                answer = self._client.get_object(**self._of(name, version_id), **ranged)
            except Exception as exc:
                if _code(exc) == "InvalidRange":  # it begins behind the end
                    return b""
                raise
            content: bytes = answer["Body"].read()
        return content

    def extend_retention(
        self,
        versions: Mapping[str, str],
        until: datetime | Mapping[str, datetime],
        mode: str = "COMPLIANCE",
        *,
        dry_run: bool = False,
    ) -> Sequence[str]:
        """Keep versions of objects until a time at least. None is shortened.

        Args:
            versions: Names, and the ids of their versions, as of `recorded_versions`.
            until: With its time zone; of all, or per name.
            dry_run: Only look which would be extended.

        Returns:
            The names that were extended, in the given order.
        """

        def extend(item: tuple[str, str]) -> bool:
            name, version = item
            wanted = (until if isinstance(until, datetime) else until[name]).astimezone(UTC)
            kept = self.retention(name, version)
            if kept is not None and kept >= wanted:
                return False
            if not dry_run:
                with self._errors("extend the retention of", name):
                    self._client.put_object_retention(
                        **self._of(name, version), Retention={"Mode": mode, "RetainUntilDate": wanted}
                    )
            return True

        extended = at_once(extend, versions.items())
        return [name for name, done in zip(versions, extended, strict=True) if done]

    def retention(self, name: str, version_id: str) -> datetime | None:
        """Until when a version is kept; None: it is not, or the key may not know (s3:GetObjectRetention)."""
        with self._errors("read the retention of", name):
            found = self._client.head_object(**self._of(name, version_id))
        until: datetime | None = found.get("ObjectLockRetainUntilDate")
        return None if until is None else until.astimezone(UTC)

    def retentions(self, versions: Mapping[str, str]) -> Mapping[str, datetime | None]:
        """Until when versions are kept: names, and ids of versions as of `recorded_versions`."""
        found = at_once(lambda item: self.retention(*item), versions.items())
        return dict(zip(versions, found, strict=True))

    def undelete(self, name: str, markers: Iterable[Marker]) -> None:
        """Remove delete markers, so that the version below them is the current one again."""
        for marker in markers:
            with self._errors("remove a delete marker of", name):
                self._client.delete_object(**self._of(name, marker.version_id))

    def put_back(self, name: str, version_id: str) -> None:
        """Copy a version over what lies above it, in the server. The version itself stays as it is."""
        of = self._of(name, version_id)
        with self._errors("put back", name):
            self._client.copy_object(Bucket=of["Bucket"], Key=of["Key"], CopySource=of)

    def delete(self, name: str) -> None:
        """Put a delete marker over an object. Its versions stay."""
        with self._errors("delete", name):
            self._client.delete_object(Bucket=self.location.bucket, Key=self._key(name))

    def _of(self, name: str, version_id: str) -> dict[str, str]:
        return {"Bucket": self.location.bucket, "Key": self._key(name), "VersionId": version_id}

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self.location.prefix, checked_name(name)) if part)

    @contextmanager
    def _errors(self, doing: str, name: str = "") -> Iterator[None]:
        """Errors of boto3 become SinkErrors, without what the server said."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        place = self.location.place(name)
        try:
            yield
        except NoCredentialsError as exc:
            raise SinkError(
                f"Could not {doing} {place}: there are no credentials.", remedy=ENVIRONMENT
            ) from exc
        except ClientError as exc:
            code = _code(exc)
            remedy = _REMEDIES.get(
                code, "Look at the log of the server: it may not know object lock or versions."
            )
            raise SinkError(f"Could not {doing} {place}: {code}.", remedy=remedy, code=code) from exc
        except BotoCoreError as exc:
            raise SinkError(
                f"Could not {doing} {place}: {type(exc).__name__}.",
                remedy="Check the endpoint and the network.",
            ) from exc


def at_once(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What a function returns for each item, which are worked on side by side. The first error is raised."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(function, items))


def grouped(pages: Iterable[Mapping[str, Any]], start: str = "") -> Iterator[History]:
    """The histories of the names in a listing of versions, ascending. A page may end within a name.

    Args:
        pages: As boto3 has them.
        start: What every key begins with, and no name.
    """
    found: dict[str, tuple[list[Version], list[Marker]]] = {}
    for page in pages:
        for each in page.get("Versions", ()):
            version = _version(str(each["Key"])[len(start) :], each)
            found.setdefault(version.name, ([], []))[0].append(version)
        for each in page.get("DeleteMarkers", ()):
            marker = Marker(str(each["VersionId"]), each["LastModified"].timestamp())
            found.setdefault(str(each["Key"])[len(start) :], ([], []))[1].append(marker)
        for name in sorted(found)[:-1]:
            yield from _history(name, *found.pop(name))
    for name, history in found.items():
        yield from _history(name, *history)


def _history(name: str, versions: Sequence[Version], markers: Sequence[Marker]) -> Iterator[History]:
    with suppress(ValueError):  # keys of somebody else
        yield History(checked_name(name), tuple(versions), tuple(markers))


def _version(name: str, found: Mapping[str, Any]) -> Version:
    return Version(
        name,
        str(found["VersionId"]),
        int(found["Size"]),
        found["LastModified"].timestamp(),
        bool(found.get("IsLatest")),
        str(found.get("ETag", "")),
    )


_NO_LOCK: Final = ("ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound")
_GONE: Final = "Somebody removed this version, as nothing locked it. Use another copy of the repository."

_REMEDIES: Final = {
    "AccessDenied": _RIGHTS,
    "InvalidAccessKeyId": ENVIRONMENT,
    "SignatureDoesNotMatch": ENVIRONMENT,
    "NoSuchBucket": "Make the bucket first: vadpipe object-lock prepare --make, or prepare_bucket(make=True).",
    "BucketAlreadyOwnedByYou": "It is there already: leave out --make (make=True).",
    "BucketAlreadyExists": "Choose another name: the bucket belongs to somebody.",
    "InvalidBucketState": _MADE_WITH,
    "InvalidRequest": _MADE_WITH,
    "NoSuchVersion": _GONE,
    "404": _GONE,
    "403": _RIGHTS,
}


def _code(exc: Exception) -> str:
    """The code of a ClientError."""
    response: Mapping[str, Mapping[str, object]] = getattr(exc, "response", {})
    return str(response.get("Error", {}).get("Code", "the server refused it"))
