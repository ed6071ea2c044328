"""config.json, the keys of a repository, and sealed documents.

One key per purpose keeps purposes apart: bytes that are a map page in one place and guest data in another have two
names that nobody without the secret can relate. The purposes' names are part of the format.

In a sealed document, the keyed BLAKE3 of the rest stands in the field `seal`.

The text is canonical (sorted keys, fixed spacing), and reading compares byte for byte: what parses to the same
values but is written otherwise was altered, too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from blake3 import blake3

from pipeline import IntegrityError, KiB, SinkError
from vadpipe.files import flush_directory, write_durably

from .files import DIRECTORY_MODE, Damage, Layout, read_whole, sink_errors

KEY_SIZE = 32


@dataclass(frozen=True)
class Keys:
    """`chunk` is the repository's key itself; the others are its keyed BLAKE3 of 'vadpipe repository <purpose>'."""

    chunk: bytes = field(repr=False)
    frame: bytes = field(repr=False)
    page: bytes = field(repr=False)
    root: bytes = field(repr=False)
    document: bytes = field(repr=False)
    seal: bytes = field(repr=False)

    @classmethod
    def derive(cls, key: bytes) -> Keys:
        def of(purpose: str) -> bytes:
            return blake3(f"vadpipe repository {purpose}".encode(), key=key).digest()

        return cls(key, of("frame"), of("page"), of("root"), of("document"), of("seal"))


def seal(fields: Mapping[str, object], key: bytes) -> bytes:
    """The document as it is stored."""
    return _text({**fields, "seal": blake3(_text(fields), key=key).hexdigest()})


def unseal(content: bytes, key: bytes) -> dict[str, object]:
    """The fields of a document. Raises Damage."""
    fields = parse(content)
    fields.pop("seal", None)
    try:
        sound = seal(fields, key) == content
    except RecursionError:
        sound = False
    if not sound:
        raise Damage("its seal is wrong")
    return fields


def parse(content: bytes) -> dict[str, object]:
    """The fields of a document that cannot be proved yet. Raises Damage."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise Damage("it is not a JSON document") from exc
    if not isinstance(fields, dict):
        raise Damage("it is not a JSON object")
    return fields


def _text(fields: Mapping[str, object]) -> bytes:
    return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode(
        errors="surrogatepass"
    )


FORMAT: Final = "vadpipe repository"
VERSION: Final = 1
ID_SIZE: Final = 16
_LARGEST: Final = 64 * KiB


@dataclass(frozen=True)
class Origin:
    """Where ids, keys and times come from. Tests that compare files byte for byte give their own."""

    random: Callable[[int], bytes] = secrets.token_bytes
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def timestamp(self) -> str:
        """Now as ISO 8601 in UTC with microseconds; sorts like the time."""
        return self.now().astimezone(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Config:
    """A repository's identity and keys."""

    id: bytes
    created: str
    keys: Keys = field(repr=False)


def create_repository(layout: Layout, origin: Origin) -> Config:
    """Make a repository in a directory that is missing, empty, or was begun by this function. Raises SinkError."""
    root = layout.root
    with sink_errors(root, "create a repository in"):
        if layout.config.exists():
            raise SinkError(f"There is a repository in {root} already.", remedy="Use it as it is.")
        if root.exists() and not _may_become_one(layout):
            raise SinkError(
                f"{root} is not an empty directory.", remedy="Name an empty directory, or one to be made."
            )
        root.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        for directory in layout.directories:
            directory.mkdir(DIRECTORY_MODE, exist_ok=True)
        temporary = layout.tmp / layout.config.name
        temporary.unlink(missing_ok=True)
        flush_directory(root)
        flush_directory(root.parent)
        key, identity = origin.random(KEY_SIZE), origin.random(ID_SIZE)
        fields = {
            "format": FORMAT,
            "version": VERSION,
            "id": identity.hex(),
            "created": origin.timestamp(),
            "digest": "blake3",
            "key": key.hex(),
        }
        # Last: a directory with a config is a whole repository.
        content = seal(fields, Keys.derive(key).seal)
        write_durably(layout.config, content, temporary=temporary)
        return Config(identity, str(fields["created"]), Keys.derive(key))


def _may_become_one(layout: Layout) -> bool:
    """Whether a directory is empty but for what `create_repository` makes before it writes the config."""
    if not layout.root.is_dir():
        return False
    begun = all(
        path in layout.directories and not path.is_symlink() and path.is_dir()
        for path in layout.root.iterdir()
    )
    inside = (path for directory in layout.directories if directory.is_dir() for path in directory.iterdir())
    return begun and all(path == layout.tmp / layout.config.name for path in inside)


def read_config(layout: Layout) -> Config:
    """Raises SinkError for what is no repository of this version, IntegrityError for an altered config."""
    path = layout.config
    try:
        content = read_whole(path, _LARGEST)
    except Damage as damage:
        raise _unreadable(layout, damage) from damage.__cause__
    try:
        fields = parse(content)
        if fields.get("format") != FORMAT:
            raise SinkError(
                f"{layout.root} is not a repository: {path.name} is of another program.",
                remedy="Name the directory of a repository.",
                path=str(path),
            )
        if fields.get("version") != VERSION:
            raise SinkError(
                f"The repository {layout.root} has format version {fields.get('version')}, known is {VERSION}.",
                remedy="Use the vadpipe that wrote it, or a newer one.",
                path=str(path),
            )
        return _parse(fields, content)
    except Damage as damage:
        raise IntegrityError(
            f"{path} is damaged: {damage}.",
            remedy="Put it back from a copy of the repository: without its key nothing can be proved.",
            path=str(path),
        ) from damage


def _unreadable(layout: Layout, damage: Damage) -> SinkError:
    path = layout.config
    if isinstance(damage.__cause__, FileNotFoundError | NotADirectoryError):
        return SinkError(
            f"{layout.root} is not a repository: it has no {path.name}.",
            remedy=f"Name a repository, or make one with: vadpipe init {layout.root}",
            path=str(layout.root),
        )
    return SinkError(
        f"Could not read {path}: {damage}.",
        remedy="Give this user the right to read the repository, or put the file back from a copy of it.",
        path=str(path),
    )


def _parse(fields: dict[str, object], content: bytes) -> Config:
    try:
        key, identity = bytes.fromhex(str(fields["key"])), bytes.fromhex(str(fields["id"]))
        created = str(fields["created"])
    except (KeyError, ValueError) as exc:
        raise Damage("a field is missing or unreadable") from exc
    if len(key) != KEY_SIZE or len(identity) != ID_SIZE:
        raise Damage("its key or its id has a wrong length")
    keys = Keys.derive(key)
    unseal(content, keys.seal)
    return Config(identity, created, keys)
