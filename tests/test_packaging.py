"""The wheel and the sdist: what they contain, and that an installation without extras works.

Nothing is downloaded: the wheel goes into a fresh virtual environment, and the distributions that it requires are
linked there from this environment, without those that only an extra requires.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QEMU_IMG = shutil.which("qemu-img")

pytestmark = pytest.mark.slow


def run(*command, cwd=None, check=True, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(cwd or "/"), **environment},
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def required(name, found=None):
    """Names of the distributions that `name` requires without an extra, their own requirements included."""
    found = set() if found is None else found
    for line in distribution(name).requires or []:
        dependency, _, marker = line.partition(";")
        dependency = re.split(r"[^\w.-]", dependency.strip())[0].lower()
        if "extra" in marker or dependency in found:
            continue
        try:
            distribution(dependency)
        except PackageNotFoundError:  # required on another platform or Python
            continue
        found.add(dependency)
        required(dependency, found)
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT)
    [sdist], [wheel] = directory.glob("*.tar.gz"), directory.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The `bin` directory of a virtual environment with the wheel and what it requires without extras."""
    place = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", place)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, built[1], cwd=place)
    [site] = (place / "lib").glob("python*/site-packages")
    for name in required("vadpipe"):
        for file in distribution(name).files or []:
            top = file.parts[0]
            target = Path(distribution(name).locate_file(top))
            if top not in ("..", "__pycache__") and target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    return place / "bin"


def test_the_wheel_installs_no_generic_names_beside_the_three(built):
    with zipfile.ZipFile(built[1]) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
        metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "pipeline",
        "stages",
        "sinks",
        "vadpipe",
    }
    assert "License-Expression: Apache-2.0" in metadata
    assert "License-File: LICENSE" in metadata


def test_the_wheel_holds_every_file_of_the_packages_and_the_examples(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    tracked = {
        str(path.relative_to(ROOT))
        for package in ("pipeline", "stages", "sinks", "vadpipe")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    examples = {f"vadpipe/examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert tracked | examples <= names


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["lab", "--help"], ["bench", "--help"]])
def test_a_command_works_without_extras(installed, words):
    done = run(installed / "vadpipe", *words, cwd=installed.parent)
    assert "vadpipe" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_lab_says_what_to_install(installed, tmp_path):
    done = run(installed / "vadpipe", "lab", "demo", tmp_path / "demo", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "pip install 'vadpipe[lab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_lab_finds_the_installed_examples(installed):
    found = run(installed / "python", "-c", "from vadpipe.lab import EXAMPLES; print(EXAMPLES)", cwd="/")
    examples = Path(found.stdout.strip())
    assert examples.is_relative_to(installed.parent)
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        path.name for path in examples.glob("*.py")
    }


@pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is missing")
def test_a_backup_of_local_files_works_without_extras(installed, tmp_path):
    (tmp_path / "vm").mkdir()
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(1 << 20) + b"content" * 150_000 + bytes(1 << 20))
    run(QEMU_IMG, "convert", "-O", "vmdk", raw, tmp_path / "vm" / "disk.vmdk")
    repository = tmp_path / "repository"
    command = installed / "vadpipe"
    config = next((installed.parent / "lib").glob("python*/site-packages/vadpipe/examples/local.py"))
    run(command, "init", repository, cwd=tmp_path)
    run(command, "run", config, cwd=tmp_path, VM_DIRECTORY=str(tmp_path / "vm"), REPOSITORY=str(repository))
    assert run(command, "points", repository, cwd=tmp_path).stdout.strip()
    run(command, "restore", repository, "latest", f"raw:{tmp_path / 'restored'}", cwd=tmp_path)
    [image] = (tmp_path / "restored").rglob("*.raw")
    content = image.read_bytes()
    assert content[: raw.stat().st_size] == raw.read_bytes()
    assert not any(content[raw.stat().st_size :])


def test_the_sdist_can_test_itself(built, tmp_path):
    with tarfile.open(built[0]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    for name in (
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Makefile",
        "docs/design.md",
        "examples/local.py",
    ):
        assert (tree / name).is_file(), name
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert {str(path.relative_to(tree)) for path in (tree / "tests").rglob("*.py")} == here
    done = run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/test_layering.py",
        "tests/stages",
        "-m",
        "not slow",
        cwd=tree,
    )
    assert re.search(r"\d\d+ passed", done.stdout)
