"""Manifests that nobody's writer makes: documents blown up in one dimension, documents and zips with bytes changed.

`hostile` draws one from a random generator, so a number is enough to make it again.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from types import MappingProxyType

from .corpus import case
from .draft import Draft

_LARGEST = 16 << 20  # about what the bounds of the archive let through in one member, and
_STORED = 8 << 20  # as a file
_IDS = 'writerId="a65faa63-5ea8-4ebc-9dbd-a0c4db26912a" instanceId="{}"'
_MARKUP = (
    "<", ">", "/>", "</", "<!--", "-->", "<![CDATA[", "]]>", "<?x ", "?>", "&#0;", "&#x10FFFF;", "&lt;", "&e;",
    "<!DOCTYPE a [<!ENTITY e '&#38;e;'>]>", "\0", "\ufffe", "\ud7ff", '"', "'", " xmlns:a='b'", "\U0001f600",
    "<COMPONENT ", "<BACKUP_COMPONENTS>", "<WRITER_COMPONENTS/>", "backupSucceeded='no' ", "xFailureMsg='y' ",
    "</BACKUP_LOCATIONS>", "\\\\\\",
)  # fmt: skip


def _times(unit: str, size: int) -> str:
    return unit * max(1, size // len(unit))


def _wide(rng: random.Random) -> str:
    """A character that makes Python's text one, two or four bytes wide."""
    return rng.choice(("x", "\u20ac", "\U0001f600"))


def _attributes(rng: random.Random, size: int) -> str:
    count = min(1_000_000, size // 12)
    return "<a " + " ".join(f'b{number}=""' for number in range(count)) + "/>"


def _elements(rng: random.Random, size: int) -> str:
    inside = "".join(f' {letter}=""' for letter in "abcdefghij"[: rng.randrange(10)])
    return f"<a>{_times(f'<b{inside}/>', size)}</a>"


def _wide_elements(rng: random.Random, size: int) -> str:
    row = "<b " + " ".join(f'c{number}=""' for number in range(rng.choice((60, 500, 990)))) + "/>"
    return f"<a>{_times(row, size)}</a>"


def _names(rng: random.Random, size: int) -> str:
    return "<a>" + "".join(f"<b{number} c{number}=''/>" for number in range(size // 20)) + "</a>"


def _depth(rng: random.Random, size: int) -> str:
    return _times(rng.choice(("<a>", "<a b='c'>", "<a><!---->")), size)


def _long_token(rng: random.Random, size: int) -> str:
    start, end = rng.choice(
        (("<!--", "-->"), ("<?x ", "?>"), ('<b c="', '"/>'), ("<![CDATA[", "]]>"), ("<b ", "/>"))
    )
    inside = _times(rng.choice(("x", "<", "\n", "-", "x ")), size)
    return "<a>" + start + inside + rng.choice((end, ""))


def _many_tokens(rng: random.Random, size: int) -> str:
    token = rng.choice(
        ("<!---->", "<?x?>", "<![CDATA[]]>", "&lt;", "&#10;", "\n", "\r", "\r\n", "x", " ", "]")
    )
    return f"<a>{_times(token, size)}</a>"


def _medium_tokens(rng: random.Random, size: int) -> str:
    inside = _times(rng.choice(("x", "x<", "\n")), rng.choice((60_000, 250_000)))
    return f"<a>{_times(f'<!--{inside}-->', size)}</a>"


def _namespaces(rng: random.Random, size: int) -> str:
    uri = "n" * rng.choice((1, 1000, 60_000))
    row = " ".join(f'xmlns:b{number}="{uri}"' for number in range(rng.choice((1, 100, 5000))))
    return f"<r>{_times(f'<a {row}/>', min(size, 4 << 20))}</r>"


def _listed(rng: random.Random, size: int) -> str:
    path = _times(rng.choice(("p", "p\\", "\\", _wide(rng))), rng.choice((4, 100, 1000)))
    extra = rng.choice(
        ("", ' backupSucceeded="no"', f' xFailureMsg="{_wide(rng) * 300}"', f' componentType="{"t" * 999}"')
    )
    rows = [
        f'<COMPONENT componentName="{number}" logicalPath="{path}"{extra}/>'
        for number in range(min(size // (len(path) + len(extra) + 50), rng.choice((100, 7_000, 50_000))))
    ]
    ids = _IDS.format(rng.choice(("1", "i" * 100_000)))
    writer = f"<WRITER_COMPONENTS {ids}>{''.join(rows)}</WRITER_COMPONENTS>"
    return f'<BACKUP_COMPONENTS selectComponents="yes">{writer}</BACKUP_COMPONENTS>'


def _writers(rng: random.Random, size: int) -> str:
    name = _wide(rng) * rng.choice((1, 250, 2000))
    rows = [
        f'<WRITER_COMPONENTS writerId="{name}" instanceId="{number}" instanceName="{name}">'
        f'<COMPONENT componentName="c"/></WRITER_COMPONENTS>'
        for number in range(min(size // (len(name) * 2 + 120), rng.choice((100, 3_900, 30_000))))
    ]
    return f'<BACKUP_COMPONENTS selectComponents="yes">{"".join(rows)}</BACKUP_COMPONENTS>'


def _offered(rng: random.Random, size: int) -> str:
    path = _times(rng.choice(("p", "p\\", _wide(rng))), rng.choice((4, 100, 1000)))
    files = '<FILE_LIST path="C:\\x" filespec="*"/>' * rng.choice((0, 1, 20))
    inside = files + f'<DEPENDENCY {_IDS.format(1)} componentName="{path}"/>' * rng.choice((0, 1))
    rows = [
        f'<FILE_GROUP componentName="{number}" logicalPath="{path}" selectable="{rng.choice(("yes", "no"))}">'
        f"{inside}</FILE_GROUP>"
        for number in range(min(size // (len(path) + len(inside) + 90), rng.choice((100, 7_000, 50_000))))
    ]
    about = f'<IDENTIFICATION {_IDS.format(rng.randrange(3))} friendlyName="{_wide(rng) * rng.choice((5, 5000))}"/>'
    return f"<WRITER_METADATA>{about}<BACKUP_LOCATIONS>{''.join(rows)}</BACKUP_LOCATIONS></WRITER_METADATA>"


def _deep_paths(rng: random.Random, size: int) -> str:
    """Components above one another, as deep as a path can be: each looks at all its ancestors."""
    place = "\\".join("p" * min(500, size // 600))
    rows = [
        f'<FILE_GROUP componentName="p" logicalPath="{place[: 2 * step + 1]}" selectable="no"/>'
        for step in range(len(place) // 2)
    ]
    about = f"<IDENTIFICATION {_IDS.format(1)}/>"
    return f"<WRITER_METADATA>{about}<BACKUP_LOCATIONS>{''.join(rows)}</BACKUP_LOCATIONS></WRITER_METADATA>"


def _entities(rng: random.Random, size: int) -> str:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return f'<!DOCTYPE b [<!ENTITY l0 "ha">{levels}]><b c="&l9;">&l9;</b>'


def _linux(rng: random.Random, size: int) -> str:
    inside = _times(rng.choice(("x", "x\n", "&lt;", "<b/>")), size)
    return f"<quiesceManifest><productVersion>{inside}</productVersion></quiesceManifest>"


_BLOWN_UP: MappingProxyType[str, Callable[[random.Random, int], str]] = MappingProxyType(
    {
        make.__name__.strip("_").replace("_", " "): make
        for make in (
            _attributes, _elements, _wide_elements, _names, _depth, _long_token, _many_tokens, _medium_tokens,
            _namespaces, _listed, _writers, _offered, _deep_paths, _entities, _linux,
        )
    }
)  # fmt: skip


def hostile(rng: random.Random) -> tuple[str, bytes]:
    """(what it is, a manifest file)."""
    draw = rng.random()
    if draw < 0.25:
        return _blown_up(rng)
    if draw < 0.32:
        return _many_documents(rng)
    if draw < 0.34:
        return _long_names(rng)
    if draw < 0.65:
        return "bytes of the zip changed", changed(_draft(rng).archive(), rng)
    return _changed_document(rng)


def _draft(rng: random.Random) -> Draft:
    return case(rng.getrandbits(32), rng.getrandbits(32)).draft


def _blown_up(rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(list(_BLOWN_UP))
    size = int(_LARGEST * rng.random() ** 2)
    encoding = rng.choice(("utf-8", "utf-8", "utf-16-le"))
    document = _BLOWN_UP[name](rng, size).encode(encoding, "replace")[: _LARGEST - 200]
    if len(document) < _STORED - 1000 and rng.random() < 0.8:
        return f"{name}, {len(document):,} bytes", _zip({"backup.xml": document}, deflated=False)
    # What nobody can compress, so that the document is not refused for being a zip bomb.
    ballast = f"<!--{rng.randbytes(len(document) // 500).hex()}-->".encode(encoding)
    return f"{name}, {len(document):,} bytes", _zip({"backup.xml": ballast + document}, deflated=True)


def _many_documents(rng: random.Random) -> tuple[str, bytes]:
    """Documents that are each within bounds, and too much together."""
    makers = [rng.choice((_listed, _writers, _offered, _elements)) for _ in range(rng.choice((3, 12, 100)))]
    size = rng.choice((1 << 16, 1 << 20, 4 << 20))
    documents = {f"{number}.xml": make(rng, size).encode() for number, make in enumerate(makers)}
    return f"{len(makers)} documents of {size:,} bytes", _zip(documents, deflated=True)


def _long_names(rng: random.Random) -> tuple[str, bytes]:
    letter = _wide(rng)
    length = rng.choice((60_000, 16_000, 250)) // len(letter.encode())
    count = min(500, (_STORED - 1000) // (2 * (length * len(letter.encode()) + 60)))
    names = [f"{number}{letter * length}" for number in range(count)]
    return f"{count} names of {length} characters", _zip(dict.fromkeys(names, b"<a/>"), deflated=False)


def _changed_document(rng: random.Random) -> tuple[str, bytes]:
    documents = _draft(rng).members()
    for name in rng.sample(list(documents), rng.randrange(len(documents) + 1)):
        documents[name] = _markup_changed(documents[name], rng)
    return "markup of documents changed", _zip(documents, deflated=True)


def _markup_changed(document: bytes, rng: random.Random) -> bytes:
    text = document.decode(rng.choice(("utf-8", "utf-16-le")), "replace")
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(text) + 1)
        upto = min(len(text), at + rng.choice((0, 1, 10, 300)))
        inserted = rng.choice((*_MARKUP, text[at:upto] * rng.choice((0, 2, 50))))
        text = text[:at] + inserted + text[upto:]
    return text.encode(rng.choice(("utf-8", "utf-16-le", "utf-16", "cp1252")), "replace")


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them changed, cut out, repeated or moved."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(made) + 1)
        upto = min(len(made), at + rng.choice((1, 1, 2, 4, 30, 1000)))
        match rng.randrange(5):
            case 0:
                made[at:upto] = rng.randbytes(upto - at)
            case 1:
                made[at:upto] = b""
            case 2:
                made[at:at] = made[at:upto]
            case 3:
                made[at:upto] = rng.choice((b"\0", b"\xff", b"PK\x01\x02", b"\xff\xff\xff\xff"))
            case _ if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
    return bytes(made)


def _zip(documents: dict[str, bytes], *, deflated: bool) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, content in documents.items():
            archive.writestr(name, content)
    return buffer.getvalue()
