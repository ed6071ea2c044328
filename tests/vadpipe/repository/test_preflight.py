"""What preflight said is part of the point: sealed with it, and shown."""

import json

import pytest
import trio
from click.testing import CliRunner

from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import MACHINE
from vadpipe.cli.repository import show_point
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

FOUND = {
    "vm": "web01",
    "exit_code": 3,
    "findings": [
        {
            "rule": "datastore-low",
            "severity": "warning",
            "subject": "gold",
            "found": "3 GiB free",
            "remedy": "!",
        }
    ],
    "unknown": [{"rule": "vss-services", "why": "vSphere does not tell"}],
}


async def published(path, preflight):
    repository = Repository(path)
    repository.init()
    async with repository.open() as store, store.begin(MACHINE) as point:
        return await point.publish(FakeCapture(MACHINE, [], preflight=preflight), [], None)


@pytest.mark.parametrize("preflight", [FOUND, None])
async def test_findings_of_preflight_are_read_back_from_the_point(tmp_path, preflight):
    identity = await published(tmp_path / "repository", preflight)
    async with open_repository(tmp_path / "repository") as reader:
        point = reader.resolve(identity)
    assert point.preflight == preflight
    assert point.as_dict().get("preflight") == preflight


@pytest.mark.parametrize(
    ("preflight", "lines"),
    [
        (
            FOUND,
            [
                "  preflight: 1 warning, 1 condition not known",
                f"    warning {'datastore-low':28}gold: 3 GiB free",
            ],
        ),
        ({"findings": [], "unknown": []}, ["  preflight: nothing found"]),
        ({"problem": "no privilege"}, ["  preflight: none, because no privilege"]),
        (None, ["  preflight: none"]),
    ],
)
def test_findings_of_preflight_are_shown_with_the_point(tmp_path, preflight, lines):
    identity = trio.run(published, tmp_path / "repository", preflight)
    arguments = [str(tmp_path / "repository"), identity]
    shown = CliRunner().invoke(show_point, arguments, standalone_mode=False)
    assert shown.exception is None
    found = shown.output.splitlines()
    at = found.index(lines[0])
    assert found[at : at + len(lines)] == lines
    document = CliRunner().invoke(show_point, [*arguments, "--json"], standalone_mode=False)
    assert json.loads(document.output).get("preflight") == preflight
