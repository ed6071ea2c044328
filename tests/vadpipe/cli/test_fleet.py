"""`vadpipe fleet simulate`, and the blocks of docs/fleet.md."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.errors import ConfigError
from vadpipe.cli.config import limits_of, read_config
from vadpipe.cli.fleet import fleet
from vadpipe.fleet import Limits, random_site
from vadpipe.fleet.site import Site

PAGE = (Path(__file__).parents[3] / "docs" / "fleet.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def simulate(*arguments):
    done = CliRunner().invoke(fleet, ["simulate", *map(str, arguments)], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
def example(tmp_path):
    [site] = blocks("json")
    path = tmp_path / "site.json"
    path.write_text(site)
    return path


def test_the_site_of_the_page_can_be_simulated(example):
    told = simulate(example)
    assert "2 VMs, 2 disks, 1 hosts, 1 datastores, 2 proxies" in told
    assert "bottleneck: " in told
    assert "one more proxy like proxy" in told


def test_the_document_has_every_way_of_admission(example):
    document = json.loads(simulate(example, "--json"))
    assert set(document["schemes"]) == {"tokens", "fifo", "slots"}
    ours = document["schemes"]["tokens"]
    # sql01 begins after an hour and reads 500 GB by hot-add.
    assert ours["end_s"] == pytest.approx(3600 + 20 + 5e11 / 1.5e8 + 15)
    assert ours["bound_s"] == pytest.approx(ours["end_s"])
    assert (ours["late"], ours["never"], ours["broken"]) == ([], [], {})
    assert document["one_more_proxy"]["saves_s"] == 0


def test_a_random_site_is_written_and_gives_the_same_when_it_is_read(tmp_path):
    path = tmp_path / "site.json"
    made = json.loads(simulate("--random", 100, "--seed", 3, "--write", path, "--json"))
    read = json.loads(simulate(path, "--json"))
    assert Site.from_json(json.loads(path.read_text())) is not None
    assert made["schemes"]["tokens"]["end_s"] == read["schemes"]["tokens"]["end_s"]
    assert made["disks"] == sum(len(vm.disks) for vm in random_site(100, seed=3).vms) == 100


def test_a_latency_target_slows_the_streams_of_a_datastore_that_is_overloaded(tmp_path):
    site = random_site(200, seed=1).as_dict()
    for datastore in site["datastores"]:
        datastore.update(bytes_per_second=3e8, streams=32)
    path = tmp_path / "site.json"
    path.write_text(json.dumps(site))
    free = json.loads(simulate(path, "--json"))["schemes"]["tokens"]
    braked = json.loads(simulate(path, "--latency-ms", "4", "--json"))["schemes"]["tokens"]
    assert braked["latency_s"] < free["latency_s"]
    assert braked["end_s"] <= 1.1 * free["end_s"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "is no JSON"), ("[]", "no JSON object"), ("{}", "has no 'hosts'"), (None, "cannot be read")],
)
def test_a_site_that_cannot_be_read_is_one_sentence(tmp_path, text, told):
    path = tmp_path / "site.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        simulate(path)


@pytest.mark.parametrize("arguments", [[], ["site.json", "--random", "5"]])
def test_either_a_site_or_a_size_is_named(arguments):
    with pytest.raises(Exception, match="SITE"):
        simulate(*arguments)


def test_the_python_blocks_of_the_page_run(capsys):
    found = {}
    for block in blocks("python"):
        exec(block, found)
    assert found["limits"] == Limits(connections=20, streams=4)
    first, second = capsys.readouterr().out.splitlines()
    assert "Start(job='web01'" in first
    assert "Hold(job='web02', resource='host:esxi01/connections'" in first
    assert "Start(job='web02'" in second


def config(tmp_path, line):
    path = tmp_path / "config.py"
    path.write_text(
        f"from pipeline import Job\nfrom pipeline.testing import FakeMachine, FakeTarget\n{line}\n"
        "job = Job(FakeMachine([]), lambda disk, point: None, into=FakeTarget())\n"
    )
    read_config(path)
    return path


def test_limits_of_a_configuration_are_found(tmp_path):
    line = "from vadpipe.fleet import Limits\nlimits = Limits(streams=2)"
    assert limits_of(config(tmp_path, line)) == Limits(streams=2)


def test_a_configuration_without_limits_has_the_default_ones(tmp_path):
    assert limits_of(config(tmp_path, "")) == Limits()


def test_limits_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="which is no Limits"):
        limits_of(config(tmp_path, "limits = {'streams': 2}"))
