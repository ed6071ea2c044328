"""Building the stand-in."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vadpipe.lab import vddk_build
from vadpipe.lab.vddk_build import CompilationFailed, CompilerMissing, build_vddk


@pytest.fixture
def tiny_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources that make "builds" at once: the rules of rebuilding are the same."""
    for tool in ("make", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is needed to build")
    sources = tmp_path / "sources"
    sources.mkdir()
    names = " ".join(f"$(OUT)/lib64/libvixDiskLib.so{suffix}" for suffix in (".6", ".7", ".8", ".9", ""))
    (sources / "Makefile").write_text(f"all:\n\tmkdir $(OUT)/lib64\n\ttouch {names}\n")
    monkeypatch.setattr(vddk_build, "SOURCES", sources)
    return sources


def test_the_stand_in_is_built_once_and_again_when_a_source_is_newer(tiny_sources, tmp_path):
    library = build_vddk(tmp_path / "out") / "lib64" / "libvixDiskLib.so.8"
    os.utime(tiny_sources / "Makefile", (1, 1))
    first = library.stat().st_mtime_ns
    build_vddk(tmp_path / "out")
    assert library.stat().st_mtime_ns == first
    os.utime(library, (0, 0))
    build_vddk(tmp_path / "out")
    assert library.stat().st_mtime_ns >= first
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lib64"]


def test_simultaneous_builds_do_not_disturb_each_other(tiny_sources, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(build_vddk, [tmp_path / "out"] * 4))
    assert built == [tmp_path / "out"] * 4
    assert len(list((tmp_path / "out" / "lib64").iterdir())) == 5


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="apt install gcc make"):
        build_vddk(tmp_path / "out")


def test_the_output_of_a_failing_compiler_is_quoted(tmp_path, monkeypatch):
    if shutil.which("make") is None:
        pytest.skip("make is needed to run a compiler")
    for name in ("cc", "gcc"):
        (tmp_path / name).write_text("#!/bin/sh\necho broken compiler >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CompilationFailed, match="broken compiler"):
        build_vddk(tmp_path / "out")
    assert list((tmp_path / "out" / "lib64").iterdir()) == []
