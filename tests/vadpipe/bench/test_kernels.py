"""`vadpipe bench kernels`."""

import numpy as np
import pytest

from pipeline import MiB
from tests.vadpipe.bench.bench_kit import bench, document
from vadpipe.bench.kernels import first_data, kernels_of, seeded_data


def test_data_from_a_seed_is_the_same_again():
    once, again, other = (seeded_data(MiB, seed) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_the_zero_test_gets_all_data_and_the_others_what_it_leaves():
    data = np.zeros(3 * MiB, dtype=np.uint8)
    data[MiB : 2 * MiB] = seeded_data(MiB, 1)[np.arange(MiB) % 4096]
    kernels = kernels_of(data, levels=[1])
    sizes = {name: kernel.size for name, kernel in kernels.items()}
    assert sizes.pop("zero test") == 3 * MiB
    assert set(sizes.values()) == {MiB}
    assert kernels["raw, encode"].run() == MiB
    assert 0 < kernels["zstd 1, encode"].run() < MiB


def test_of_zeros_alone_only_the_zero_test_is_measured():
    assert list(kernels_of(np.zeros(MiB, dtype=np.uint8))) == ["zero test"]


def test_what_a_codec_encoded_is_what_it_decodes():
    kernels = kernels_of(seeded_data(2 * MiB, 1), levels=[1])
    assert kernels["zstd 1, encode"].run() > 0
    assert kernels["zstd 1, decode"].run() is None


def test_holes_of_a_file_are_left_out(tmp_path):
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        for at, content in ((2, b"\x01"), (7, b"\x02")):
            file.seek(at * MiB)
            file.write(content * MiB)
        file.truncate(12 * MiB)
    data = first_data(image, 64 * MiB)
    assert len(data) < 12 * MiB
    assert [np.count_nonzero(data == value) for value in (1, 2)] == [MiB, MiB]
    assert len(first_data(image, MiB)) == MiB


def test_kernels_take_turns_and_codecs_have_a_ratio(capsys):
    found = document(capsys, "kernels", "--size", 1, "--level", 1, "--level", -3, "--repeat", 2)
    cases = [row["case"] for row in found["results"]]
    half = len(cases) // 2
    assert cases[:half] == cases[half:]
    named = {
        "zero test",
        "cut",
        "blake3, keyed",
        "xxh3-128",
        "zstd 1, encode",
        "zstd -3, decode",
        "raw, encode",
    }
    assert named <= set(cases)
    assert found["kind"] == "bench kernels"
    assert found["about"].endswith("1 MiB of seed 1")
    for row in found["results"]:
        assert row["mib_per_cpu_s"] > 0
        assert ("ratio" in row) == row["case"].endswith("encode")
    ratios = {row["case"]: row["ratio"] for row in found["results"] if "ratio" in row}
    assert ratios["raw, encode"] == 1.0
    assert 1 < ratios["zstd -3, encode"] < ratios["zstd 1, encode"]


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read: No such file"), (b"a small file", "has no MiB of data")]
)
def test_a_file_without_data_is_refused(tmp_path, capsys, content, told):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    code, out, err = bench(capsys, "kernels", file)
    assert (code, out) == (2, "")
    assert told in err
