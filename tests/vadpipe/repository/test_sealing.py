"""Encryption of documents, frames and cells: round trips, golden bytes, and that nothing altered or moved opens."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ContractError
from vadpipe.repository.format.objects import Damage
from vadpipe.repository.format.sealing import (
    Sealing,
    Secrets,
    check_document,
    open_cell,
    open_frame_payload,
    open_frame_table,
    seal_cell,
    seal_frame_parts,
)

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("sealing.json").read_text())
REPOSITORY = bytes(range(16))
SECRETS = Secrets(b"n" * 32, {1: b"1" * 32, 2: b"2" * 32})
SALT = bytes(range(100, 116))
NAME = "points/web01/00112233aabbccdd.json"
TEXT = b'{\n "version": 2\n}\n'


def fixed(size):
    return SALT[:size]


SEALING = Sealing(REPOSITORY, SECRETS, fixed)


def head(*, kind=1, identity=b"i" * 32, epoch=2, stored=11):
    """Bytes 0 to 56 of a sealed frame."""
    return struct.pack("<4sBBHIIII32s", b"VFRS", kind, 1, 0, 4096, stored, 1, epoch, identity)


TABLE, PAYLOAD = bytes(range(36)), b"the payload"


def flips(content):
    """The content with one bit turned, for each bit."""
    for place in range(len(content) * 8):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        yield bytes(altered)


def repaired(document):
    """The document with a right checksum, as an attacker writes it."""
    return document[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(document[:-8]))


# What the format page says, once more.


def page_subkey(epoch_key, purpose, salt):
    return blake3(b"vadpipe seal " + purpose + salt, key=epoch_key).digest()


def page_document(name, text):
    header = b"VADSEAL2" + struct.pack("<II", 2, 0) + SALT
    place = b"document" + REPOSITORY + header + name.encode()
    sealed = AESGCM(page_subkey(b"2" * 32, b"document", SALT)).encrypt(bytes(12), text, place)
    return repaired(header + sealed + bytes(8))


def page_frame(first, table, payload):
    cipher = AESGCM(page_subkey(b"2" * 32, b"frame", SALT))
    place = b"frame" + REPOSITORY + first
    return cipher.encrypt(bytes(12), table, place), cipher.encrypt(b"\x01" + bytes(11), payload, place)


def test_documents_have_the_golden_bytes():
    sealed = SEALING.seal_document(NAME, TEXT)
    assert sealed.hex() == GOLDEN["document"]
    assert sealed == page_document(NAME, TEXT)


def test_frame_parts_have_the_golden_bytes():
    table, payload = seal_frame_parts(SEALING, head(), TABLE, PAYLOAD, SALT)
    assert [table.hex(), payload.hex()] == GOLDEN["frame"]
    assert (table, payload) == page_frame(head(), TABLE, PAYLOAD)


def test_cells_have_the_golden_bytes():
    cell = seal_cell(SEALING.cipher(1, "segment", SALT), 258, b"content", b"associated")
    assert cell.hex() == GOLDEN["cell"]
    key = page_subkey(b"1" * 32, b"segment", SALT)
    assert cell == AESGCM(key).encrypt(b"\x02\x01" + bytes(10), b"content", b"associated")


@pytest.mark.slow
@given(st.text(), st.binary(max_size=3000))
def test_a_document_comes_back(name, text):
    sealing = Sealing(REPOSITORY, SECRETS)
    sealed = sealing.seal_document(name, text)
    assert check_document(sealed) == 2
    assert sealing.open_document(name, sealed) == text
    assert len(sealed) == len(text) + 56


@given(st.binary(max_size=2000), st.binary(max_size=2000), st.binary(min_size=32, max_size=32))
def test_frame_parts_come_back(table, payload, identity):
    sealing = Sealing(REPOSITORY, SECRETS)
    salt = sealing.salt()
    first = head(identity=identity)
    sealed_table, sealed_payload = seal_frame_parts(sealing, first, table, memoryview(payload), salt)
    assert len(sealed_table) == len(table) + 16
    assert len(sealed_payload) == len(payload) + 16
    assert open_frame_table(sealing, first, salt, memoryview(sealed_table)) == table
    assert open_frame_payload(sealing, first, salt, memoryview(sealed_payload)) == payload


@given(st.integers(0, 2**96 - 1), st.binary(max_size=500), st.binary(max_size=50))
def test_a_cell_comes_back(number, content, associated):
    cipher = SEALING.cipher(1, "segment", SALT)
    sealed = seal_cell(cipher, number, content, associated)
    assert open_cell(cipher, number, memoryview(sealed), associated) == content


def test_two_documents_of_one_text_have_different_salts():
    sealing = Sealing(REPOSITORY, SECRETS)
    assert sealing.seal_document(NAME, TEXT) != sealing.seal_document(NAME, TEXT)


def test_a_document_of_an_older_epoch_opens():
    old = Sealing(REPOSITORY, Secrets(SECRETS.naming, {1: SECRETS.epochs[1]}))
    assert (old.epoch, SEALING.epoch) == (1, 2)
    assert SEALING.open_document(NAME, old.seal_document(NAME, TEXT)) == TEXT


def test_every_flipped_bit_of_a_document_is_noticed():
    for altered in flips(SEALING.seal_document(NAME, TEXT)):
        with pytest.raises(Damage):
            SEALING.open_document(NAME, altered)


def test_every_flipped_bit_of_a_document_with_a_right_checksum_is_noticed():
    whole = SEALING.seal_document(NAME, TEXT)
    for altered in flips(whole[:-8]):
        with pytest.raises(Damage):
            SEALING.open_document(NAME, repaired(altered + bytes(8)))


def test_every_flipped_bit_is_noticed_without_a_key():
    whole = SEALING.seal_document(NAME, TEXT)
    assert check_document(whole) == 2
    for altered in flips(whole):
        with pytest.raises(Damage):
            check_document(altered)


@pytest.mark.parametrize("repair", [False, True])
def test_a_document_that_is_cut_off_or_longer_is_noticed(repair):
    whole = SEALING.seal_document(NAME, TEXT)
    for altered in [whole[:size] for size in range(len(whole))] + [whole + b"\0"]:
        altered = repaired(altered) if repair and len(altered) >= 8 else altered
        with pytest.raises(Damage):
            SEALING.open_document(NAME, altered)


def test_every_flipped_bit_of_the_parts_of_a_frame_is_noticed():
    table, payload = seal_frame_parts(SEALING, head(), TABLE, PAYLOAD, SALT)
    for altered in flips(table):
        with pytest.raises(Damage):
            open_frame_table(SEALING, head(), SALT, altered)
    for altered in flips(payload):
        with pytest.raises(Damage):
            open_frame_payload(SEALING, head(), SALT, altered)


def test_every_flipped_bit_of_the_head_and_the_salt_of_a_frame_is_noticed():
    table, payload = seal_frame_parts(SEALING, head(), TABLE, PAYLOAD, SALT)
    places = [(altered, SALT) for altered in flips(head())] + [(head(), altered) for altered in flips(SALT)]
    for first, salt in places:
        with pytest.raises(Damage):
            open_frame_table(SEALING, first, salt, table)
        with pytest.raises(Damage):
            open_frame_payload(SEALING, first, salt, payload)


def test_every_flipped_bit_of_a_cell_is_noticed():
    cipher = SEALING.cipher(1, "segment", SALT)
    for altered in flips(seal_cell(cipher, 5, b"content", b"place")):
        with pytest.raises(Damage):
            open_cell(cipher, 5, altered, b"place")


def test_a_cell_opens_at_its_own_number_and_place_only():
    cipher = SEALING.cipher(1, "segment", SALT)
    sealed = seal_cell(cipher, 5, b"content", b"place")
    for number, place in ((4, b"place"), (5, b"other"), (5 << 8, b"place")):
        with pytest.raises(Damage):
            open_cell(cipher, number, sealed, place)


def test_a_document_under_another_name_is_refused():
    sealed = SEALING.seal_document(NAME, TEXT)
    with pytest.raises(Damage, match="it belongs to another place"):
        SEALING.open_document(NAME.replace("web01", "web02"), sealed)


def test_a_document_of_another_repository_is_refused():
    sealed = Sealing(b"another" + bytes(9), SECRETS).seal_document(NAME, TEXT)
    with pytest.raises(Damage, match="another place or repository"):
        SEALING.open_document(NAME, sealed)


def test_a_document_whose_epoch_was_exchanged_is_refused():
    sealed = SEALING.seal_document(NAME, TEXT)
    with pytest.raises(Damage, match="another place or repository"):
        SEALING.open_document(NAME, repaired(sealed[:8] + struct.pack("<I", 1) + sealed[12:]))


def test_a_frame_copied_under_another_id_or_kind_is_refused():
    table, payload = seal_frame_parts(SEALING, head(), TABLE, PAYLOAD, SALT)
    for other in (head(identity=b"j" * 32), head(kind=2), head(epoch=1), head(stored=12)):
        with pytest.raises(Damage, match="another place"):
            open_frame_table(SEALING, other, SALT, table)
        with pytest.raises(Damage, match="another place"):
            open_frame_payload(SEALING, other, SALT, payload)


def test_a_table_is_no_payload_of_the_same_frame():
    table, payload = seal_frame_parts(SEALING, head(), TABLE, TABLE, SALT)
    with pytest.raises(Damage):
        open_frame_payload(SEALING, head(), SALT, table)
    with pytest.raises(Damage):
        open_frame_table(SEALING, head(), SALT, payload)


def test_the_purposes_have_different_keys():
    sealed = SEALING.cipher(1, "frame", SALT).encrypt(bytes(12), b"content", b"")
    with pytest.raises(Damage):
        open_cell(SEALING.cipher(1, "document", SALT), 0, sealed, b"")


def test_an_unknown_epoch_is_named():
    newer = Sealing(REPOSITORY, Secrets(SECRETS.naming, {7: b"7" * 32}))
    with pytest.raises(Damage, match="under epoch 7, whose key"):
        SEALING.open_document(NAME, newer.seal_document(NAME, TEXT))


def test_a_repository_that_is_not_sealed_keeps_its_text():
    plain = Sealing(REPOSITORY, None)
    assert (plain.sealed, plain.epoch) == (False, 0)
    assert plain.seal_document(NAME, TEXT) == TEXT
    assert plain.open_document(NAME, TEXT) == TEXT


def test_a_repository_that_is_not_sealed_refuses_what_is_encrypted():
    plain = Sealing(REPOSITORY, None)
    with pytest.raises(Damage, match="it is encrypted, but the repository is not sealed"):
        plain.open_document(NAME, SEALING.seal_document(NAME, TEXT))
    with pytest.raises(Damage, match="it is encrypted, but the repository is not sealed"):
        open_frame_table(plain, head(), SALT, bytes(52))


def test_a_sealed_repository_refuses_plain_text():
    with pytest.raises(Damage, match="it is not encrypted, but the repository is sealed"):
        SEALING.open_document(NAME, TEXT)


def test_no_repr_shows_a_key():
    shown = f"{SECRETS} {SECRETS!r} {SEALING} {SEALING!r} {vars(SEALING)}"
    for key in (SECRETS.naming, *SECRETS.epochs.values()):
        for spelling in (key.hex(), key.decode(), repr(key)):
            assert spelling not in shown
    assert repr(SECRETS) == "Secrets(epochs 1, 2)"


def test_drawn_secrets_have_one_epoch_and_two_keys():
    drawn = Secrets.draw()
    assert list(drawn.epochs) == [1]
    assert len({drawn.naming, drawn.epochs[1], Secrets.draw().naming}) == 3


@pytest.mark.parametrize(
    ("naming", "epochs"),
    [(b"", {1: b"1" * 32}), (b"n" * 32, {}), (b"n" * 32, {0: b"1" * 32}), (b"n" * 32, {1: b"1" * 31})],
)
def test_impossible_secrets_are_refused(naming, epochs):
    with pytest.raises(ContractError):
        Secrets(naming, epochs)


def test_secrets_do_not_change_with_the_mapping_that_they_were_made_of():
    epochs = {1: b"1" * 32}
    known = Secrets(b"n" * 32, epochs)
    epochs[2] = b"2" * 32
    assert known.newest == 1


PROBE = """
import sys
from vadpipe.repository.format.sealing import Sealing
import vadpipe.repository, vadpipe.repository.format.slots
import vadpipe.cli.commands, vadpipe.cli.repository, vadpipe.cli.keys
plain = Sealing(bytes(16), None)
assert plain.open_document("a", plain.seal_document("a", b"text")) == b"text"
loaded = [name for name in sys.modules if name.partition(".")[0] in ("cryptography", "pyrage")]
assert not loaded, loaded
"""


@pytest.mark.slow
def test_cryptography_is_not_loaded_where_nothing_is_sealed():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WITHOUT = """
import sys
sys.modules["cryptography"] = None
from vadpipe.repository.format.sealing import Sealing, Secrets
from pipeline import ConfigError
try:
    Sealing(bytes(16), Secrets.draw()).seal_document("a", b"text")
except ConfigError as exc:
    print(exc)
"""


@pytest.mark.slow
def test_a_missing_cryptography_is_named_with_the_extra():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert "pip install 'vadpipe[sealed]'" in done.stdout, done.stderr
