"""A bucket that keeps what was written: versions of objects, and retention that nobody can shorten (object lock).

Backups need none of this; it is for whoever sets up the bucket, with rights that a backup does not have. It uses
boto3 (the extra `s3-admin`), because obstore knows neither versions nor retention.

Retention belongs to a version of an object. A thief who may write can put another version, or a delete marker, over
a locked one: the locked version is still there, and `recorded_versions` finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pipeline import ConfigError, SinkError

from .contract import checked_name, checked_prefix
from .s3_location import ENVIRONMENT, S3Location

log = logging.getLogger(__name__)

MODES: Final = ("COMPLIANCE", "GOVERNANCE")

_RIGHTS: Final = (
    "Use a key that may do this: s3:CreateBucket, s3:PutBucketVersioning, s3:PutBucketObjectLockConfiguration, "
    "s3:PutObjectRetention, s3:ListBucketVersions."
)


@dataclass(frozen=True)
class Version:
    """One version of an object: its id, its size in bytes, and when it was written (seconds since 1970, by the
    clock of the server)."""

    name: str
    version_id: str
    size: int
    modified: float


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
            make: Make the bucket, with object lock when there is a retention.
            retention_days: How long each new version cannot be removed; None: no object lock.
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
                self._client.create_bucket(**bucket, ObjectLockEnabledForBucket=retention_days is not None)
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

    def versions(self, prefix: str = "") -> Iterator[Version]:
        """Every version of every object whose name begins with `prefix`, ascending by name, newest first."""
        checked_prefix(prefix)
        start = f"{self.location.prefix}/" if self.location.prefix else ""
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self.location.bucket, Prefix=start + prefix
        )
        with self._errors("list the versions of"):
            for page in pages:
                for found in page.get("Versions", ()):
                    name = str(found["Key"])[len(start) :]
                    written: datetime = found["LastModified"]
                    yield Version(name, str(found["VersionId"]), int(found["Size"]), written.timestamp())

    def recorded_versions(self, prefix: str = "") -> Mapping[str, str]:
        """Per name the id of its oldest version: what a repository wrote, since it writes each name once.

        Hints and signs of life are replaced, so of these it is an old one.
        """
        return {found.name: found.version_id for found in self.versions(prefix)}  # the last one is the oldest

    def extend_retention(
        self, versions: Mapping[str, str], until: datetime, mode: str = "COMPLIANCE"
    ) -> Iterable[str]:
        """Keep versions of objects until a time at least. None is shortened.

        Args:
            versions: Names, and the ids of their versions, as of `recorded_versions`.
            until: With its time zone.

        Returns:
            The names that were extended, in the given order.
        """
        extended: list[str] = []
        until = until.astimezone(UTC)
        for name, version in versions.items():
            of = {"Bucket": self.location.bucket, "Key": self._key(name), "VersionId": version}
            kept = self._retention(name, of)
            if kept is not None and kept >= until:
                continue
            with self._errors("extend the retention of", name):
                self._client.put_object_retention(**of, Retention={"Mode": mode, "RetainUntilDate": until})
            extended.append(name)
        return extended

    def retention(self, name: str, version_id: str) -> datetime | None:
        """Until when a version is kept; None: it is not."""
        of = {"Bucket": self.location.bucket, "Key": self._key(name), "VersionId": version_id}
        return self._retention(name, of)

    def _retention(self, name: str, of: Mapping[str, str]) -> datetime | None:
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        with self._errors("read the retention of", name):
            try:
                until: datetime = self._client.get_object_retention(**of)["Retention"]["RetainUntilDate"]
            except ClientError as exc:
                if _code(exc) in ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"):
                    return None
                raise
        return until

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


_REMEDIES: Final = {
    "AccessDenied": _RIGHTS,
    "InvalidAccessKeyId": ENVIRONMENT,
    "SignatureDoesNotMatch": ENVIRONMENT,
    "NoSuchBucket": "Make the bucket first: prepare_bucket(make=True).",
    "BucketAlreadyOwnedByYou": "It is there already: leave out make=True.",
    "BucketAlreadyExists": "Choose another name: the bucket belongs to somebody.",
    "InvalidBucketState": "Object lock is chosen when a bucket is made: make another one.",
    "InvalidRequest": "Object lock is chosen when a bucket is made: make another one.",
}


def _code(exc: Exception) -> str:
    """The code of a ClientError."""
    response: Mapping[str, Mapping[str, object]] = getattr(exc, "response", {})
    return str(response.get("Error", {}).get("Code", "the server refused it"))
