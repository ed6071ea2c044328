"""What an open disk counts over all the children that served it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VddkStatistics:
    """Counts of an open disk since it was opened.

    `restarts`: children started anew; `unclean`: children that did not leave in order with status 0;
    `remaining`: hot-added disks of the VM that the last one of the others saw still attached; `calls`: library
    call -> (times called, seconds), of the children that did.
    """

    requests: int
    bytes_read: int
    restarts: int
    unclean: int
    remaining: int
    calls: Mapping[str, tuple[int, float]]


@dataclass(eq=False)
class Tally:
    """The counters behind `VddkStatistics`."""

    requests: int = 0
    bytes_read: int = 0
    children: int = 0
    unclean: int = 0
    remaining: int = 0
    _calls: dict[str, list[float]] = field(default_factory=dict)

    def count_child(self, clean: bool, remaining: int, times: Mapping[str, Sequence[float]]) -> None:
        """Add a child that has ended, with its library calls and what its Cleanup left."""
        self.unclean += not clean
        if clean:
            self.remaining = remaining
        for name, (called, seconds) in times.items():
            tally = self._calls.setdefault(name, [0, 0.0])
            tally[0] += called
            tally[1] += seconds

    def statistics(self) -> VddkStatistics:
        calls = {name: (int(called), seconds) for name, (called, seconds) in self._calls.items()}
        restarts = max(0, self.children - 1)
        return VddkStatistics(self.requests, self.bytes_read, restarts, self.unclean, self.remaining, calls)
