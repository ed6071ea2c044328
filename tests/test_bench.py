"""The benchmarks run tiny; no figure of theirs decides anything."""

import json
import os
import shutil

import pytest

from pipeline import ConfigError, GiB
from tests.conftest import vadpipe
from vadpipe.bench import images

MKE2FS = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@pytest.mark.slow
@pytest.mark.skipif(MKE2FS is None, reason="mke2fs is missing")
def test_the_path_bench_measures_every_case(tmp_path):
    done = vadpipe("bench", "path", "--size", 1, "--fill", 24, "--directory", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert "seed 1" in document["about"]
    assert "cores" in document["about"]
    results = {result["case"]: result for result in document["results"]}
    assert set(results) == {
        "memory-null-stored",
        "memory-null-zstd1",
        "image-null-stored",
        "image-null-zstd1",
        "image-repository-zstd1",
    }
    for result in results.values():
        assert result["read"] > 20 << 20
        assert result["cpu_s"] > 0
        assert result["limited_by"]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["disk.raw", "disk.vmdk"]


def test_an_image_that_cannot_be_filled_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a file").write_bytes(bytes(1000))
    monkeypatch.setattr(images, "ROOTS", (str(tmp_path),))
    with pytest.raises(ConfigError, match=r"only 1000 B of files.* smaller --fill"):
        images.ext4_image(tmp_path / "images", GiB, GiB, 1)
    assert not (tmp_path / "images").exists()
