"""The suite of the contract, over each backend that needs no server, and over each wrapper."""

import pytest

from tests.vadpipe.repository.backends.suite import BackendSuite
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.backends.memory import MemoryBackend

MAKERS = {
    "local": lambda path: LocalBackend(path / "repository"),
    "memory": lambda path: MemoryBackend(),
}


class TestEveryBackend(BackendSuite):
    @pytest.fixture(params=MAKERS)
    def backend(self, request, tmp_path):
        made: Backend = MAKERS[request.param](tmp_path)
        yield made
        made.close()
