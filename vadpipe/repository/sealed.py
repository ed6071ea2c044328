"""JSON documents that prove themselves: the keyed BLAKE3 of the rest stands in the field `seal`.

The text is canonical (sorted keys, fixed spacing), and reading compares byte for byte: what parses to the same
values but is written otherwise was altered, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from blake3 import blake3

from .damage import Damage


def seal(fields: Mapping[str, object], key: bytes) -> bytes:
    """The document as it is stored."""
    return _text({**fields, "seal": blake3(_text(fields), key=key).hexdigest()})


def unseal(content: bytes, key: bytes) -> dict[str, object]:
    """The fields of a document. Raises Damage."""
    fields = parse(content)
    fields.pop("seal", None)
    if seal(fields, key) != content:
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
