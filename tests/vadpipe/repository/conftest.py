"""Repositories for the tests: in a directory (`repository`, of the whole suite), and in either of two places."""

import pytest

from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.store import Repository


@pytest.fixture(params=["directory", "memory"])
def anywhere(request, tmp_path):
    """An empty repository, in a directory or in memory."""
    made = Repository(tmp_path / "repository" if request.param == "directory" else MemoryBackend())
    made.init()
    return made


@pytest.fixture
def in_memory():
    """An empty repository in memory."""
    made = Repository(MemoryBackend())
    made.init()
    return made
