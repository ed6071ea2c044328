"""The one lock of the server, and the news that wake those who wait for changes."""

import threading
import time


class Changes:
    """Stamps managed objects with the time of their last change and wakes waiters.

    `lock` guards all state of the server. It is held while state is read or changed, never during disk work.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self.clock = 0
        self._stamps: dict[str, int] = {}

    def touch(self, *morefs: str) -> None:
        """The objects changed (none: only wake the waiters, who have news of their own)."""
        with self.lock:
            self.clock += 1
            self._stamps.update(dict.fromkeys(morefs, self.clock))
            self._changed.notify_all()

    def stamp(self, moref: str) -> int:
        return self._stamps.get(moref, 0)

    def wait(self, deadline: float | None) -> bool:
        """With the lock held: wait for the next change; False when `deadline` (monotonic seconds) passed."""
        remaining_s = None if deadline is None else deadline - time.monotonic()
        return (remaining_s is None or remaining_s > 0) and self._changed.wait(remaining_s)
