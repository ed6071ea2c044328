"""The documents of a capture go into the point, beside those of the finisher."""

import pytest

from pipeline.errors import ContractError
from pipeline.protocols import Evidence
from pipeline.testing.fakes import FakeCapture
from tests.vadpipe.repository.repository_kit import MACHINE
from vadpipe.repository.reader import open_repository
from vadpipe.repository.store import Repository

EVIDENCE = Evidence("crash", satisfied=True, reasons=(), documents={"vss-manifest.zip": b"PK"})


async def _published(path, documents):
    repository = Repository(path)
    repository.init()
    async with repository.open() as store, store.begin(MACHINE) as point:
        return await point.publish(FakeCapture(MACHINE, [], documents=documents), [], EVIDENCE)


async def test_documents_of_the_capture_and_of_the_finisher_are_read_back(tmp_path):
    large = bytes(range(256)) * (40 << 10)  # more than one piece
    identity = await _published(tmp_path / "repository", {"vm-config.xml": b"<config/>", "vm.nvram": large})
    async with open_repository(tmp_path / "repository") as reader:
        point = reader.resolve(identity)
        assert set(point.documents) == {"vm-config.xml", "vm.nvram", "vss-manifest.zip"}
        assert await reader.document(point, "vm.nvram") == large
        assert await reader.document(point, "vss-manifest.zip") == b"PK"


async def test_a_name_that_both_have_is_refused_and_nothing_is_published(tmp_path):
    with pytest.raises(ContractError, match=r"both have a document 'vss-manifest\.zip'"):
        await _published(tmp_path / "repository", {"vss-manifest.zip": b"mine"})
    async with open_repository(tmp_path / "repository") as reader:
        assert reader.points == ()
