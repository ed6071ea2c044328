#!/usr/bin/env python3
"""Restore disks from a vadpipe repository without vadpipe: one file, the standard library and `zstandard`.

Written from docs/repository.md alone, for the day on which nothing else is left. It needs the point files and the
packs; the index is not read, so a lost or damaged index does not matter. With the package `blake3` installed every
byte is proved; without it, lengths and structure are checked and the output says "not proved". A sealed repository
needs `blake3` and `cryptography`, and a key. A bucket is copied into a directory first, each key as a path.

    read_repository.py REPOSITORY list
    read_repository.py REPOSITORY restore POINT DISK FILE       a raw image, sparse
    read_repository.py REPOSITORY document POINT NAME FILE

    --key-file FILE, --passphrase-file FILE                     open a sealed repository
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

try:
    from blake3 import blake3
except ImportError:
    blake3 = None  # type: ignore[assignment,misc]

CLUSTER = 4096
PAGE = 256 << 20
DIGEST = 32
EMPTY = bytes(DIGEST)
CACHED = 64  # decoded frames, of at most 16 MiB each but 1 MiB as a rule

PACK_HEADER = struct.Struct("<8s16s12sIQ")
PACK_FOOTER = struct.Struct("<8sIIQQ")
FRAME_ROW = struct.Struct("<32sQIIII")  # id, offset, size, length, chunks, 0
FRAME_HEADER = struct.Struct("<4sBBHIIII32sQ")
CHUNK = struct.Struct("<I32s")
MAP_HEADER = struct.Struct("<4sIII")
MAP_ROW = struct.Struct("<HHHH")
SALT = TAG = 16
SEALED_DOCUMENT = struct.Struct("<8sII16s")  # magic, epoch, 0, salt; the text, its tag and a checksum follow
NO_NONCE = bytes(12)
KEY_FILE = "VADPIPE-KEY-1-"
DATA, MAP, DOCUMENT = 1, 2, 3
PURPOSE = {DATA: "", MAP: "page", DOCUMENT: "document"}


class Damaged(Exception):
    """Something is not as the format says."""


class Place(NamedTuple):
    """Where a frame lies."""

    pack: Path
    offset: int
    size: int


class Frame(NamedTuple):
    kind: int
    content: bytes
    chunks: list[tuple[int, bytes]]  # length and digest


class Keys:
    """The keyed digests of a repository; without `blake3` they prove nothing and agree with everything."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def digest(self, purpose: str, content: bytes) -> bytes | None:
        if blake3 is None:
            return None
        key = self._key
        if purpose:
            key = blake3(f"vadpipe repository {purpose}".encode(), key=key).digest()
        return blake3(content, key=key).digest()

    def expect(self, purpose: str, content: bytes, wanted: bytes, what: str) -> None:
        if self.digest(purpose, content) not in (None, wanted):
            raise Damaged(f"{what}: its digest is wrong")


class Sealing:
    """The keys of the epochs of a sealed repository."""

    def __init__(self, repository: bytes, epochs: dict[int, bytes]) -> None:
        self._id = repository
        self._epochs = epochs

    def decrypt(
        self, epoch: int, purpose: str, salt: bytes, nonce: int, content: bytes, place: bytes, what: str
    ) -> bytes:
        """What was encrypted under the subkey of one object; `place` is its associated data without the id."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if epoch not in self._epochs:
            raise Damaged(f"{what} is of epoch {epoch}, whose key is not among the secrets of this slot")
        subkey = blake3(f"vadpipe seal {purpose}".encode() + salt, key=self._epochs[epoch]).digest()
        associated = purpose.encode() + self._id + place
        try:
            return AESGCM(subkey).decrypt(nonce.to_bytes(12, "little"), content, associated)
        except InvalidTag as problem:
            raise Damaged(f"{what} was altered, or belongs elsewhere") from problem

    def document(self, name: str, content: bytes) -> bytes:
        """The text of a sealed document."""
        magic, epoch, _, salt = SEALED_DOCUMENT.unpack_from(content)
        if magic != b"VADSEAL2":
            raise Damaged(f"{name} is not sealed")
        head, text = content[: SEALED_DOCUMENT.size], content[SEALED_DOCUMENT.size : -8]
        return self.decrypt(epoch, "document", salt, 0, text, head + name.encode(), name)


def unlocked(
    root: Path, repository: bytes, key_file: Path | None, passphrase_file: Path | None
) -> tuple[bytes, dict[int, bytes]]:
    """The naming key, and the keys of the epochs, by the slot that one of these files opens."""
    if blake3 is None:
        raise Damaged("a sealed repository needs the packages blake3 and cryptography")
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    if key_file is None and passphrase_file is None:
        raise Damaged("the repository is sealed: give --key-file or --passphrase-file")
    for path in sorted((root / "keys").glob("*.json")):
        slot = json.loads(path.read_bytes())
        if slot["kind"] == "keyfile" and key_file is not None:
            text = key_file.read_text().strip()
            private = bytes.fromhex(text.removeprefix(KEY_FILE))
        elif slot["kind"] == "passphrase" and passphrase_file is not None:
            private = derived(passphrase_file, slot["kdf"])
        else:
            continue
        own = X25519PrivateKey.from_private_bytes(private)
        public = bytes.fromhex(slot["public"])
        if own.public_key().public_bytes_raw() != public:
            continue
        naming, epochs = b"", {}
        for wrap in sorted((root / "keys" / slot["id"]).glob("*.json")):
            fields = json.loads(wrap.read_bytes())
            epoch, ephemeral = int(fields["epoch"]), bytes.fromhex(fields["ephemeral"])
            secret = own.exchange(X25519PublicKey.from_public_bytes(ephemeral))
            info = b"vadpipe wrap" + repository + bytes.fromhex(slot["id"]) + struct.pack("<I", epoch)
            key = HKDF(SHA256(), 32, ephemeral + public, info).derive(secret)
            try:
                secrets = AESGCM(key).decrypt(NO_NONCE, bytes.fromhex(fields["wrapped"]), info)
            except InvalidTag as problem:
                raise Damaged(f"{wrap} was altered") from problem
            naming, epochs[epoch] = secrets[:32], secrets[32:]
        if epochs:
            return naming, epochs
    raise Damaged("no key slot is opened by this key")


def derived(passphrase_file: Path, kdf: dict[str, Any]) -> bytes:
    """The private key of a passphrase."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    lines = passphrase_file.read_text().splitlines()
    passphrase = unicodedata.normalize("NFC", lines[0] if lines else "").encode()
    passes, memory, lanes = int(kdf["passes"]), int(kdf["memory_kib"]), int(kdf["lanes"])
    if not (0 < passes <= 16 and 0 < memory <= 4 << 20 and 0 < lanes <= 16):
        raise Damaged("a key slot asks for more work or memory than any that was made")
    salt = bytes.fromhex(kdf["salt"])
    return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(
        passphrase
    )


class Repository:
    """A directory, and what its packs hold."""

    def __init__(self, root: Path, key_file: Path | None = None, passphrase_file: Path | None = None) -> None:
        self.root = root
        config = json.loads((root / "config.json").read_bytes())
        if config.get("format") != "vadpipe repository" or config.get("version") not in (1, 2):
            raise Damaged(f"{root} has a format that this program does not know")
        self.id = bytes.fromhex(config["id"])
        self._sealing = None
        if config.get("sealing", "none") == "none":
            self.keys = Keys(bytes.fromhex(config["key"]))
        else:
            naming, epochs = unlocked(root, self.id, key_file, passphrase_file)
            self.keys, self._sealing = Keys(naming), Sealing(self.id, epochs)
        self._proved("config.json", (root / "config.json").read_bytes())
        self._frames: dict[bytes, Place] | None = None
        self._objects: dict[bytes, Place] = {}
        self._decoded: OrderedDict[bytes, Frame] = OrderedDict()

    def _proved(self, name: str, content: bytes) -> dict[str, Any]:
        """The fields of a JSON document."""
        fields: dict[str, Any] = json.loads(content)
        seal = bytes.fromhex(fields.pop("seal"))
        text = json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        self.keys.expect("seal", text.encode(errors="surrogatepass"), seal, name)
        return fields

    def points(self) -> list[dict[str, Any]]:
        """The readable points, by time; a damaged one is named on standard error."""
        found = []
        for path in sorted((self.root / "points").glob("*/*.json")):
            try:
                content = path.read_bytes()
                if content.startswith(b"VADENDED"):
                    continue  # its run was ended before it had a point
                name = path.relative_to(self.root).as_posix()
                if self._sealing is not None:
                    content = self._sealing.document(name, content)
                found.append(self._proved(name, content))
            except (Damaged, ValueError, KeyError) as problem:
                print(f"{path} cannot be used: {problem}", file=sys.stderr)
        return sorted(found, key=lambda point: (str(point["created"]), point.get("number", 0)))

    def point(self, name: str) -> dict[str, Any]:
        found = [point for point in self.points() if point["id"].startswith(name)]
        if len(found) != 1:
            raise Damaged(f"{len(found)} points begin with {name!r}")
        return found[0]

    # Packs and frames

    def frames(self) -> dict[bytes, Place]:
        """Every frame of every readable pack by its id. Notes maps and documents by the digest of their chunk."""
        if self._frames is None:
            self._frames = {}
            for path in sorted((self.root / "packs").glob("??/*.pack")):
                try:
                    self._list(path, self._frames)
                except (Damaged, OSError, struct.error) as problem:
                    print(f"{path} is left out: {problem}", file=sys.stderr)
        return self._frames

    def _list(self, path: Path, frames: dict[bytes, Place]) -> None:
        with path.open("rb") as pack:
            magic, repository, *_ = PACK_HEADER.unpack(pack.read(PACK_HEADER.size))
            pack.seek(-PACK_FOOTER.size, os.SEEK_END)
            end, count, _, table, _ = PACK_FOOTER.unpack(pack.read(PACK_FOOTER.size))
            if (magic, end) != (b"VADPACK1", b"VADPEND1") or repository != self.id:
                raise Damaged("it is no whole pack of this repository")
            pack.seek(table)
            rows = pack.read(count * FRAME_ROW.size)
            for identity, offset, size, _, chunks, _ in FRAME_ROW.iter_unpack(rows):
                frames[identity] = Place(path, offset, size)
                if chunks == 1:
                    self._note_object(pack, Place(path, offset, size))

    def _note_object(self, pack: BinaryIO, place: Place) -> None:
        pack.seek(place.offset)
        head = pack.read(FRAME_HEADER.size)
        if FRAME_HEADER.unpack(head)[1] != DATA:
            table, _ = self._table(head, pack.read(SALT + CHUNK.size + TAG), f"a frame of {place.pack}")
            self._objects[CHUNK.unpack(table)[1]] = place

    def _table(self, head: bytes, rest: bytes, where: str) -> tuple[bytes, int]:
        """The chunk table of a frame, of which `rest` comes behind the header; and where the payload begins
        there."""
        magic, _, _, _, _, _, count, epoch, _, _ = FRAME_HEADER.unpack(head)
        size = count * CHUNK.size
        if magic == b"VFRM" and self._sealing is None:
            return rest[:size], size
        if magic != b"VFRS" or self._sealing is None:
            raise Damaged(f"{where} is sealed and the repository is not, or the other way round")
        end = SALT + size + TAG
        return self._sealing.decrypt(epoch, "frame", rest[:SALT], 0, rest[SALT:end], head[:56], where), end

    def frame(self, identity: bytes) -> Frame:
        """A decoded frame."""
        if identity in self._decoded:
            self._decoded.move_to_end(identity)
            return self._decoded[identity]
        if (place := self.frames().get(identity)) is None:
            raise Damaged(f"frame {identity.hex()[:16]} is in no pack")
        frame = self._decoded[identity] = self._read(place, identity)
        if len(self._decoded) > CACHED:
            self._decoded.popitem(last=False)
        return frame

    def object(self, digest: bytes, kind: int) -> bytes:
        """A map page, a page list or a piece of a document, by the digest of its bytes."""
        self.frames()
        if (place := self._objects.get(digest)) is None:
            raise Damaged(f"object {digest.hex()[:16]} is in no pack")
        frame = self._read(place, None)
        if frame.kind != kind:
            raise Damaged(f"object {digest.hex()[:16]} is of another kind")
        self.keys.expect(PURPOSE[kind], frame.content, digest, f"object {digest.hex()[:16]}")
        return frame.content

    def _read(self, place: Place, identity: bytes | None) -> Frame:
        with place.pack.open("rb") as pack:
            pack.seek(place.offset)
            record = pack.read(place.size)
        where = f"the frame at byte {place.offset} of {place.pack}"
        head, rest = record[: FRAME_HEADER.size], record[FRAME_HEADER.size :]
        _, kind, codec, _, length, stored, _, epoch, named, _ = FRAME_HEADER.unpack(head)
        table, end = self._table(head, rest, where)
        payload = rest[end:]
        if identity not in (None, named):
            raise Damaged(f"{where} is not what the pack says")
        self.keys.expect("frame", table, named, where)
        if self._sealing is not None:
            payload = self._sealing.decrypt(epoch, "frame", rest[:SALT], 1, payload, head[:56], where)
        if len(payload) != stored:
            raise Damaged(f"{where} is not what the pack says")
        content = decoded(codec, payload, length, where)
        chunks = list(CHUNK.iter_unpack(table))
        start = 0
        for size, digest in chunks:
            self.keys.expect(PURPOSE.get(kind, ""), content[start : start + size], digest, where)
            start += size
        if start != len(content):
            raise Damaged(f"{where} has {len(content)} bytes, and its chunks {start}")
        return Frame(kind, content, chunks)

    # Disks

    def rows(self, disk: dict[str, Any]) -> Iterator[tuple[int, int, bytes, int]]:
        """What of a disk is not zero: offset and length in bytes, frame id, place in the frame in bytes."""
        capacity = disk["capacity"]
        listed = self.object(bytes.fromhex(disk["pages"]), MAP)
        tree = struct.pack("<Q", capacity) + listed
        self.keys.expect("root", tree, bytes.fromhex(disk["root"]), f"disk {disk['key']}")
        for number in range(len(listed) // DIGEST):
            digest = listed[number * DIGEST : (number + 1) * DIGEST]
            if digest == EMPTY:
                continue
            page = self.object(digest, MAP)
            magic, frames, rows, _ = MAP_HEADER.unpack_from(page)
            start = MAP_HEADER.size + frames * DIGEST
            if magic != b"VMAP" or start + rows * MAP_ROW.size != len(page):
                raise Damaged(f"map page {number} of disk {disk['key']} is no map page")
            for first, count, frame, place in MAP_ROW.iter_unpack(page[start:]):
                offset = number * PAGE + first * CLUSTER
                length = min(count * CLUSTER, capacity - offset)
                at = MAP_HEADER.size + frame * DIGEST
                yield offset, length, page[at : at + DIGEST], place * CLUSTER


def decoded(codec: int, payload: bytes, length: int, where: str) -> bytes:
    if codec == 1:
        try:
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=length)
        except zstandard.ZstdError as problem:
            raise Damaged(f"{where} does not decode: {problem}") from problem
    elif codec:
        raise Damaged(f"{where} has a codec of its own, {payload[1 : 1 + payload[0]]!r}")
    if len(payload) != length:
        raise Damaged(f"{where} decodes to {len(payload)} bytes instead of {length}")
    return payload


def new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def restore(repository: Repository, point: str, key: str, target: Path) -> int:
    """Write a disk. What cannot be read is named and stays zero. Returns how many bytes that is."""
    disks = {disk["key"]: disk for disk in repository.point(point)["disks"]}
    if key not in disks:
        raise Damaged(f"the point has no disk {key!r}; it has {', '.join(disks)}")
    lost = 0
    with new_file(target) as image:
        image.truncate(disks[key]["capacity"])
        for offset, length, identity, place in repository.rows(disks[key]):
            try:
                part = repository.frame(identity).content[place : place + length]
                if len(part) != length:
                    raise Damaged(f"frame {identity.hex()[:16]} is too short")
            except (Damaged, OSError, struct.error) as problem:
                print(f"bytes {offset} to {offset + length} are lost: {problem}", file=sys.stderr)
                lost += length
                continue
            image.seek(offset)
            image.write(part)
        image.flush()
        os.fsync(image.fileno())
    return lost


def document(repository: Repository, point: str, name: str, target: Path) -> None:
    documents = repository.point(point)["documents"]
    if name not in documents:
        raise Damaged(f"the point has no document {name!r}; it has {', '.join(documents) or 'none'}")
    parts = [repository.object(bytes.fromhex(part), DOCUMENT) for part in documents[name]["parts"]]
    with new_file(target) as out:
        out.write(b"".join(parts))


def show(repository: Repository) -> None:
    for point in repository.points():
        print(f"{point['id']}  {point['created']}  {point['machine']['name']}")
        for disk in point["disks"]:
            print(f"  disk {disk['key']}  {disk['capacity']} bytes  {disk['label']}")
        for name, entry in point["documents"].items():
            print(f"  document {name}  {entry['length']} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--passphrase-file", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    for name, what in (("restore", "disk"), ("document", "name")):
        command = commands.add_parser(name)
        command.add_argument("point")
        command.add_argument(what, metavar=what.upper())
        command.add_argument("file", type=Path)
    chosen = parser.parse_args()
    proved = "not proved: the package blake3 is not installed" if blake3 is None else "proved"
    try:
        repository = Repository(chosen.repository, chosen.key_file, chosen.passphrase_file)
        if chosen.command == "list":
            show(repository)
        elif chosen.command == "document":
            document(repository, chosen.point, chosen.name, chosen.file)
            print(f"{chosen.file}: {proved}")
        elif lost := restore(repository, chosen.point, chosen.disk, chosen.file):
            print(f"{chosen.file}: {lost} bytes are lost and zero here; the rest: {proved}")
            return 1
        else:
            print(f"{chosen.file}: {proved}")
    except (Damaged, OSError, KeyError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
