"""The level of compression that a slow store leaves time for.

Whoever waits for the store has processor time to spend: a stronger level makes fewer bytes, which the store takes
sooner. When nobody waits any more, the level is as strong as the store is slow, and the next one would make
compression the slowest part.
"""

from __future__ import annotations

from typing import Final

WEAKEST: Final = 1
# 93 MB/s per core on file-system data at ratio 5.77 (level 1: 725, 4.91); level 12 makes 57 and saves 1 % more.
STRONGEST: Final = 9

# How long a level is watched before it is judged: several spans even at the strongest.
WATCHED_S: Final = 0.5

# Shares of that time. Waiting for longer than the first leaves time for the next level; waiting for less than the
# second, or working at a level that lets others wait, means that the level before was as strong as can be.
_IDLE: Final = 0.15
_HURRIED: Final = 0.03

# A level that was too strong is tried again after so many times as long as before.
_FIRST_PAUSE_S: Final = 4.0
_LONGEST_PAUSE_S: Final = 64.0


class AdaptiveLevel:
    """Follows one pipeline: `level` is what to compress with now.

    It begins with the weakest level, so a store that is never waited for gets exactly that.
    """

    def __init__(self) -> None:
        self.level = WEAKEST
        self._begun: tuple[float, float, float] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._not_before_s = 0.0

    def observe(self, now_s: float, blocked_s: float, starved_s: float) -> int:
        """Judge the level when it was watched for long enough.

        Args:
            now_s: A clock that runs steadily.
            blocked_s: Seconds of waiting for the store since the beginning.
            starved_s: Seconds of waiting for the disk since the beginning.

        Returns:
            The level from now on.
        """
        if self._begun is None:
            self._begun = now_s, blocked_s, starved_s
        begun_s, blocked_before_s, starved_before_s = self._begun
        watched_s = now_s - begun_s
        if watched_s >= WATCHED_S:
            self._begun = now_s, blocked_s, starved_s
            idle = (blocked_s - blocked_before_s) / watched_s
            waits_for_disk = (starved_s - starved_before_s) / watched_s > _IDLE
            if idle > _IDLE and self.level < STRONGEST and now_s >= self._not_before_s:
                self.level += 1
            elif idle < _HURRIED and not waits_for_disk and self.level > WEAKEST:
                self.level -= 1
                self._not_before_s = now_s + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return self.level
