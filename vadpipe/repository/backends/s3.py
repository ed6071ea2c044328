"""A bucket of an S3 server as a backend, by obstore.

An object is created by one `PUT` with `If-None-Match: *`, never in several parts: radosgw ignores the condition
when parts are completed. `If-Match` is not used: radosgw 16 refuses it with the right value. obstore sends each
request once, because it would take its own first attempt for another writer; `wrappers.Retrying` repeats requests.
After an answer that was lost, the object is read back and compared.

Credentials come from where obstore looks: the environment (`AWS_ACCESS_KEY_ID`, ...), a container, an instance.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import obstore
from blake3 import blake3
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from pipeline import ConfigError, MiB, SinkError
from pipeline.secrets import blot

from .contract import ObjectExists, ObjectMissing, Parts, Stored, checked_name, checked_prefix
from .s3_errors import asks_for_checksum, first_line, trouble
from .s3_location import S3Location

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Config

log = logging.getLogger(__name__)

LARGEST_OBJECT: Final = 512 * MiB  # as the largest pack; an upload is kept in memory until it is sent
CONNECT_S: Final = 10.0
SILENCE_S: Final = 60.0  # of a server that is sending an answer
REQUEST_S: Final = 900.0  # 512 MiB at 0.6 MiB/s
SMALL_REQUEST_S: Final = 120.0  # at most 8 MiB: a server that hangs is left after two minutes

_PAGE: Final = 1000  # what S3 lists and deletes with one request at most
_COMPARED: Final = 8 * MiB
_SMALL: Final = 8 * MiB
# By whether a request may have reached the server.
_WRITTEN: Final = {
    False: " Nothing was published.",
    True: " Whether it was written is not known; the next run finds out.",
}
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN")


class S3Backend:
    """Objects in a bucket. Constructing contacts nobody."""

    def __init__(self, location: S3Location) -> None:
        """
        Raises:
            ConfigError: The endpoint is no URL, or leads to another host without TLS.
        """
        self.location = location
        self.conditional = location.conditional
        self._turn = threading.Lock()
        self._stores: dict[str, S3Store] = {}
        self._bucket_seen = False
        self._bulk = True
        self._writing = "write"
        self._endpoint = location.endpoint_url()
        for variable in _SECRETS:
            blot(os.environ.get(variable, ""))

    def __repr__(self) -> str:
        return f"S3Backend({str(self.location)!r})"

    def put(self, name: str, parts: Parts) -> None:
        _Creation(self, checked_name(name), _bytes(parts)).run()

    def begin(self, name: str) -> S3Upload:
        return S3Upload(self, checked_name(name))

    def replace(self, name: str, parts: Parts) -> None:
        checked_name(name)
        with self._request("write", name):
            self._put(name, _bytes(parts), create=False)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        checked_name(name)
        if length == 0:
            self.size(name)
            return b""
        try:
            with self._request("read", name):
                store = self._store("read")
                if length is not None:
                    return obstore.get_range(store, name, start=offset, length=length).to_bytes()
                options: GetOptions = {"range": {"offset": offset}} if offset else {}
                return obstore.get(store, name, options=options).bytes().to_bytes()
        except SinkError as error:
            if error.facts.get("status") == 416:  # the range begins behind the end
                return b""
            raise

    def size(self, name: str) -> int:
        checked_name(name)
        try:
            with self._request("read", name):
                return obstore.head(self._store("read"), name)["size"]
        except ObjectMissing:
            if not self._bucket_seen:
                next(self.list(""), None)  # such an answer has no text, so the bucket may be missing, too
            raise
        except SinkError as error:
            if error.facts.get("status") in (301, 400, 401, 403) and not error.facts.get("code"):
                next(
                    self.list(""), None
                )  # nor does it say why; who may list, but not read, gets the first error
            raise

    def list(self, prefix: str) -> Iterator[Stored]:
        return self._list(checked_prefix(prefix))

    def names(self, prefix: str) -> Sequence[str]:
        return [found.name for found in self.list(prefix)]

    def _list(self, prefix: str) -> Iterator[Stored]:
        """obstore lists below whole parts of names. For the rest of the prefix, it begins behind a name that is
        less than all that are wanted, and this ends behind the last one."""
        directory = prefix.rpartition("/")[0]
        with self._request("list", prefix):
            pages = iter(
                obstore.list(
                    self._store("read"),
                    prefix=directory or None,
                    offset=prefix[:-1] or None,
                    chunk_size=_PAGE,
                )
            )
        while True:
            with self._request("list", prefix):
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                name = found["path"]
                if name > prefix and not name.startswith(prefix):
                    return
                with suppress(ValueError):  # keys of somebody else
                    if checked_name(name).startswith(prefix):
                        yield Stored(name, found["size"], found["last_modified"].timestamp())

    def delete(self, names: Iterable[str]) -> None:
        left = iter(names)
        while batch := [checked_name(name) for name in islice(left, _PAGE)]:
            if self._bulk:
                try:
                    self._delete(batch, "bulk")
                    continue
                except SinkError as error:
                    if error.transient or error.facts.get("status") not in (400, 405, 411, 501):
                        raise
                    log.info("%s deletes one object at a time: it refused to delete many", self.place())
                    self._bulk = False
            self._delete(batch, "single")

    def _delete(self, batch: Sequence[str], kind: str) -> None:
        with self._request("remove", batch[0]):
            try:
                obstore.delete(self._store(kind), batch)
            except FileNotFoundError as exc:
                if "NoSuchBucket" in str(exc):
                    raise

    def place(self, name: str = "") -> str:
        return self.location.place(name) if name else str(self.location)

    def close(self) -> None:
        with self._turn:
            self._stores = {}

    def probe_conditional(self) -> bool:
        """Try whether the server lets one writer have a name: one after the other, and eight at once.

        Writes and deletes two objects `probe-...`. Where it does not, this backend writes without the condition.

        Raises:
            SinkError
        """
        names = [f"probe-{secrets.token_hex(8)}" for _ in range(2)]
        with self._request("write", names[0]):
            self._put(
                names[0], [b"made without the condition"], create=False
            )  # a wrong key is no missing condition
        try:
            kept = not self._creates(names[0])
            if kept:
                with ThreadPoolExecutor(8) as threads:
                    kept = sum(threads.map(self._creates, [names[1]] * 8)) == 1
        finally:
            self.delete(names)
        self.conditional = kept
        return kept

    def write_unconditionally(self) -> None:
        """From now on, look whether a name is taken before writing it: for a server without the condition.

        Of two runs that write one name at the same time, both may succeed.
        """
        self.conditional = False

    def _creates(self, name: str) -> bool:
        try:
            with self._request("write", name):
                self._put(name, [b"made with the condition"], create=True)
        except ObjectExists:
            return False
        except SinkError as error:
            if error.facts.get("status") != 501:
                raise
            return False
        return True

    def _put(self, name: str, parts: Sequence[bytes | memoryview], *, create: bool) -> None:
        content = parts[0] if len(parts) == 1 else parts or b""
        small = "small " if sum(map(len, parts)) <= _SMALL else ""
        mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
        try:
            obstore.put(self._store(small + self._writing), name, content, mode=mode, use_multipart=False)
        except BaseError as exc:
            if self._writing != "write" or not asks_for_checksum(exc):
                raise
            log.info("%s is written with checksums: its bucket has object lock", self.place())
            self._writing = "write with checksum"
            obstore.put(self._store(small + self._writing), name, content, mode=mode, use_multipart=False)

    @contextmanager
    def _request(self, doing: str, name: str) -> Iterator[None]:
        """Log the request; errors of obstore become those of the contract."""
        begin = time.monotonic()
        try:
            yield
            self._bucket_seen = True
        except (BaseError, OSError, ValueError) as exc:
            raise self._translated(doing, name, exc) from exc
        finally:
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s %s: %.3f s", doing, self.place(name), time.monotonic() - begin)

    def _translated(self, doing: str, name: str, exc: Exception) -> Exception:
        found = trouble(exc)
        if isinstance(exc, AlreadyExistsError) and found.status == 412:
            return ObjectExists(self.place(name))
        if doing == "read" and isinstance(exc, FileNotFoundError) and found.code != "NoSuchBucket":
            return ObjectMissing(self.place(name))
        error = SinkError(
            f"Could not {doing} {self.place(name)}: {found.problem}.",
            remedy=f"{found.remedy}{_WRITTEN[found.sent] if doing == 'write' else ''}",
            status=found.status,
            code=found.code,
            sent=found.sent,
        )
        error.transient = found.transient
        return error

    def _store(self, kind: str) -> S3Store:
        """obstore's client for reading, one kind of writing or of deleting; made when it is needed first."""
        with self._turn:
            if kind not in self._stores:
                self._stores[kind] = self._connect(kind)
            return self._stores[kind]

    def _connect(self, kind: str) -> S3Store:
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=SMALL_REQUEST_S if "small" in kind else REQUEST_S),
            "allow_http": self._endpoint.startswith("http://"),
            "user_agent": "vadpipe",
        }
        if "write" not in kind:  # an upload is silent for as long as it takes
            client["read_timeout"] = timedelta(seconds=SILENCE_S)
        if self.location.ca is not None:
            client["root_certificate"] = _read_ca(self.location.ca)
        config: S3Config = {
            "unsigned_payload": True,  # every byte is proved by its digest when it is read
            "disable_bulk_delete": kind == "single",
        }
        if "checksum" in kind:
            config["checksum_algorithm"] = "SHA256"
        if self._endpoint:
            config["endpoint"] = self._endpoint
        if self.location.region:
            config["region"] = self.location.region
        try:
            return S3Store(
                self.location.bucket,
                prefix=self.location.prefix or None,
                config=config,
                client_options=client,
                retry_config={"max_retries": 0},
            )
        except BaseError as exc:
            raise SinkError(
                f"Could not reach {self.place()}: {first_line(exc)}.",
                remedy="Check the options of the URL, and the environment variables AWS_*.",
            ) from exc


class S3Upload:
    """An object in the making: in memory, until one request sends it."""

    def __init__(self, backend: S3Backend, name: str) -> None:
        self._creation = _Creation(backend, name, [])
        # In one piece: of many that are kept beside others that go, memory is twice as much.
        self._content = bytearray()

    def write(self, parts: Parts) -> None:
        for part in parts:
            self._content += part
        if len(self._content) > LARGEST_OBJECT:
            raise SinkError(
                f"{self._creation.place} would be larger than {LARGEST_OBJECT // MiB} MiB.",
                remedy="Report this as a defect: no object of a repository is so large.",
            )

    def finish(self) -> None:
        self._creation.parts = [memoryview(self._content)]
        self._creation.run()
        self.abort()

    def abort(self) -> None:
        self._creation.parts = []
        self._content = bytearray()


class _Creation:
    """One object that is created, in one or several attempts."""

    def __init__(self, backend: S3Backend, name: str, parts: Parts) -> None:
        self.parts = parts
        self._backend = backend
        self._name = name
        self._uncertain = False  # an earlier attempt may have made the object

    @property
    def place(self) -> str:
        return self._backend.place(self._name)

    def run(self) -> None:
        """Raises ObjectExists, SinkError; when that is transient, this may be called again."""
        backend = self._backend
        if not backend.conditional and not self._uncertain and self._is_there():
            raise ObjectExists(self.place)
        try:
            with backend._request("write", self._name):
                backend._put(self._name, self.parts, create=backend.conditional)
        except ObjectExists:
            if not self._uncertain or not self._is_ours():
                raise
        except SinkError as error:
            if error.facts.get("status") == 409:  # another writer is at it, and this request did nothing
                if not self._uncertain and self._is_there():
                    raise ObjectExists(self.place) from error
                raise
            if not error.facts.get("sent"):
                raise
            self._uncertain = True
            log.info("%s It may have been written, so it is read back", error.problem)
            try:
                ours = self._is_ours()
            except ObjectMissing:
                raise error from None
            except SinkError:
                raise error from None
            if not ours:
                raise ObjectExists(self.place) from error

    def _is_there(self) -> bool:
        try:
            self._backend.size(self._name)
        except ObjectMissing:
            return False
        return True

    def _is_ours(self) -> bool:
        """Whether the object has the content of this one. Raises ObjectMissing, SinkError."""
        size = sum(memoryview(part).nbytes for part in self.parts)
        if self._backend.size(self._name) != size:
            return False
        ours, stored = blake3(), blake3()
        for part in self.parts:
            ours.update(part)
        for offset in range(0, size, _COMPARED):
            stored.update(self._backend.read(self._name, offset, _COMPARED))
        return ours.digest() == stored.digest()


def _bytes(parts: Parts) -> list[bytes | memoryview]:
    return [part if isinstance(part, bytes) else memoryview(part).cast("B") for part in parts if len(part)]


def _read_ca(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"Could not read the certificates in {path}: {exc.strerror}.", remedy="Correct ?ca=FILE."
        ) from exc
