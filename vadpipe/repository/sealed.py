"""The keys of a repository, and JSON documents that prove themselves.

One key per purpose keeps purposes apart: bytes that are a map page in one place and guest data in another have two
names that nobody without the secret can relate. The purposes' names are part of the format.

In a sealed document, the keyed BLAKE3 of the rest stands in the field `seal`.

The text is canonical (sorted keys, fixed spacing), and reading compares byte for byte: what parses to the same
values but is written otherwise was altered, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from .files import Damage

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
