"""The group: fast help, commands that cannot be loaded, other packages of our names, completion."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.conftest import EXAMPLES, command
from tests.conftest import vadpipe as run_command
from vadpipe.cli import commands
from vadpipe.cli.commands import BUILT_IN, vadpipe

DESCRIPTOR = """\
# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="custom"
RW 8 ZERO

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
"""


@pytest.fixture
def context():
    return click.Context(vadpipe)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_summary_in_the_table_is_that_of_the_command(context, name):
    loaded = vadpipe.get_command(context, name)
    assert BUILT_IN[name].summary == loaded.help.split("\n\n")[0].replace("\n", " ")


def cpu_of(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_no_large_library(option):
    program = (
        "import sys, atexit; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr)); "
        "from vadpipe.cli.main import main; main([sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", program, option], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stderr))
    assert not loaded & {"trio", "numpy", "rich", "pyVmomi", "cryptography", "pipeline", "stages", "sinks"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["restore", "repository"])
def test_commands_of_a_repository_load_no_library_for_vsphere_or_a_terminal(command):
    program = f"import sys, vadpipe.cli.{command}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(eval(done.stdout)) & {"rich", "pyVmomi", "sinks.in_place"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads in /proc")
def test_numpy_starts_no_threads_of_its_own(tmp_path):
    program = (
        "import os, sys; from vadpipe.cli.main import main\n"
        "try: main(['points', sys.argv[1]])\n"
        "finally:\n"
        "    import numpy\n"
        "    print(len(os.listdir('/proc/self/task')), file=sys.stderr)"
    )
    threads = []
    for setting in ({}, {"OPENBLAS_NUM_THREADS": "1"}):
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path],
            env=environment | setting,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "is not a repository" in done.stderr
        threads.append(done.stderr.splitlines()[-1])
    assert threads[0] == threads[1]


@pytest.mark.slow
def test_a_run_without_vsphere_or_a_terminal_loads_no_library_for_them(tmp_path):
    program = (
        "import sys; from vadpipe.cli.main import main\n"
        "try: main(['plan', sys.argv[1]])\n"
        "finally:\n"
        "    import vadpipe.cli.run, vadpipe.cli.progress\n"
        "    print(sorted(sys.modules), file=sys.stderr)"
    )
    config = Path(__file__).parents[3] / "examples" / "local.py"
    done = subprocess.run(
        [sys.executable, "-c", program, config], capture_output=True, text=True, check=False
    )
    loaded = set(eval(done.stderr.splitlines()[-1]))
    assert "vadpipe.repository.store" in loaded
    assert not loaded & {"rich", "pyVmomi", "cryptography", "obstore", "sinks.restore_job"}


@pytest.mark.slow
def test_no_summary_in_the_help_is_cut():
    shown, _ = cpu_of("--help")
    words = " ".join(shown.split())
    for name, entry in BUILT_IN.items():
        assert f"{name} {entry.summary}" in words


def test_a_command_that_cannot_be_loaded_costs_only_itself(monkeypatch, context):
    monkeypatch.setitem(sys.modules, "vadpipe.lab.commands", None)  # as without the extra
    with pytest.raises(click.UsageError, match=r"^lab: not available: pip install 'vadpipe\[lab\]'$"):
        vadpipe.get_command(context, "lab")
    assert "Try vadpipe" in vadpipe.get_help(context) or "lab " in vadpipe.get_help(context)


def test_a_broken_command_of_another_package_is_named_in_the_help(monkeypatch, context):
    monkeypatch.setattr(commands, "_added", lambda: {"tape": "no_such_package:tape"})
    shown = " ".join(vadpipe.get_help(context).split())
    assert "tape not available: No module named 'no_such_package'" in shown
    assert "run Run the jobs" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pipeline", "stages", "sinks"])
def test_another_package_of_our_name_is_found_and_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = subprocess.run(
        command("plan", EXAMPLES / "nightly.py"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"Another package called {name} hides vadpipe's own: {tmp_path / name}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "after"])
def test_output_options_stand_before_or_after_the_command(tmp_path, place):
    log = tmp_path / "log"
    options = ["--log-file", str(log), "-q"]
    config = tmp_path / "config.py"
    config.write_text("jobs = []")
    arguments = [*options, "plan", str(config)] if place == "before" else ["plan", str(config), *options]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert "`jobs` is empty" in done.stderr
    assert log.exists()
    assert log.stat().st_mode & 0o777 == 0o600


def completed(*words):
    done = subprocess.run(
        command(),
        env={
            **os.environ,
            "_VADPIPE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["vadpipe", *map(str, words)]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.slow
def test_jobs_of_a_configuration_are_completed(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from pipeline import Job\n"
        "from pipeline.testing import FakeMachine, FakeTarget\n"
        "jobs = [Job(FakeMachine([]), print, into=FakeTarget(), name=name) for name in ('weekly', 'nightly')]"
    )
    assert completed("run", config, "--job", "") == ["weekly", "nightly"]
    assert completed("run", config, "--job", "n") == ["nightly"]
    assert completed("run", tmp_path / "missing.py", "--job", "") == []


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One with a point of each of two VMs."""
    monkeypatch.delenv("VADPIPE_REPOSITORY", raising=False)
    place = tmp_path / "repository"
    assert run_command("init", place).returncode == 0
    for name in ("db01", "web01"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vm.vmdk").write_text(DESCRIPTOR)
        environment = {"VM_DIRECTORY": str(tmp_path / name), "REPOSITORY": str(place)}
        done = run_command("run", EXAMPLES / "local.py", environment=environment)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_points_and_vms_of_a_repository_are_completed(repository, monkeypatch):
    points = json.loads(run_command("points", repository, "--json").stdout)["points"]
    newest_first = [point["id"] for point in reversed(points)]
    assert completed("show", repository, "") == ["latest", *newest_first]
    assert completed("restore", repository, newest_first[0][:6]) == newest_first[:1]
    assert completed("restore", repository, "--vm", "") == ["db01", "web01"]
    assert completed("points", repository, "--vm", "w") == ["web01"]
    assert completed("show", repository, "--vm", "db01", "") == ["latest", newest_first[1]]
    assert completed("show", repository.parent / "missing", "") == []
    monkeypatch.setenv("VADPIPE_REPOSITORY", str(repository))
    assert completed("points", "--vm", "d") == ["db01"]
    assert completed("show", "lat") == ["latest", "lat"]  # or a path that begins like that


@pytest.mark.slow
def test_the_help_mentions_completion_and_the_repository_of_the_environment():
    shown, _ = cpu_of("--help")
    assert "VADPIPE_REPOSITORY" in shown
    assert "_VADPIPE_COMPLETE=bash_source" in shown


@pytest.mark.slow
def test_warnings_of_the_log_are_not_on_standard_error_unless_asked_for(tmp_path):
    config = tmp_path / "config.py"
    config.write_text("import logging\nlogging.getLogger('vadpipe.x').warning('told')\njobs = []")
    quiet, loud = (
        subprocess.run(command(*options, "plan", config), capture_output=True, text=True, check=False).stderr
        for options in ([], ["-v"])
    )
    assert "told" not in quiet
    assert "WARNING vadpipe.x: told" in loud
