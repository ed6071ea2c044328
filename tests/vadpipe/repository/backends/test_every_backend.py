"""The suite of the contract, over each backend that needs no server, and over each wrapper."""

import pytest

from tests.vadpipe.repository.backends.suite import BackendSuite
from vadpipe.repository.backends.cached import Cached
from vadpipe.repository.backends.contract import Backend
from vadpipe.repository.backends.local import LocalBackend
from vadpipe.repository.backends.memory import MemoryBackend
from vadpipe.repository.backends.wrappers import Delayed, Fault, Faulty, Retrying, Throttled

MAKERS = {
    "local": lambda path: LocalBackend(path / "repository"),
    "memory": lambda path: MemoryBackend(),
    "retrying": lambda path: Retrying(MemoryBackend()),
    "throttled": lambda path: Throttled(LocalBackend(path / "repository"), 1 << 40),
    "delayed": lambda path: Delayed(MemoryBackend(), 1e-6),
    "faulty": lambda path: Faulty(LocalBackend(path / "repository")),
    "cached": lambda path: Cached(MemoryBackend(), path / "copies", prefixes=("",)),
    "all together": lambda path: Cached(
        Retrying(Throttled(Delayed(LocalBackend(path / "repository"), 1e-6), 1 << 40)), path / "copies"
    ),
}


class TestRetryingWhatFails(BackendSuite):
    @pytest.fixture
    def backend(self):
        return Retrying(Faulty(MemoryBackend(), every_third()), sleep=lambda seconds: None)

    # Of two attempts with one content, nobody can tell which one it was whose answer was lost.
    @pytest.mark.parametrize("content", [b"other", b"", b"longer than the first"])
    def test_a_taken_name_is_refused(self, backend, content):
        super().test_a_taken_name_is_refused(backend, content)

    @pytest.mark.parametrize("writers", [8, 16])
    @pytest.mark.parametrize("content", ["own"])
    def test_one_of_many_writers_gets_the_name(self, backend, writers, content):
        super().test_one_of_many_writers_gets_the_name(backend, writers, content)


def every_third():
    """Every third call of every method fails with a transient error, half of them after they had their effect."""
    methods = ("put", "begin", "finish", "replace", "read", "size", "list", "delete")
    return [Fault(name, call, after=call % 2 == 0) for name in methods for call in range(1, 10_000, 3)]


class TestEveryBackend(BackendSuite):
    @pytest.fixture(params=MAKERS)
    def backend(self, request, tmp_path):
        made: Backend = MAKERS[request.param](tmp_path)
        yield made
        made.close()
