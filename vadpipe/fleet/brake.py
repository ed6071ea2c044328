"""How many streams a datastore bears: fewer while its latency is above the target, more again while it is below.

A kernel: latencies in, an allowance out. With n streams at work and the latency L of the last interval, the streams
at which the latency would be the target T are about n * (T / L) if latency grows in proportion to load, and more
exactly n * (T / L) ** (1 / p) if it grows with its p-th power. A step with an exponent g approaches that point for
every p below 2 / g and overshoots only above 1 / g. `GAIN` 0.5 is calm for each p up to 2 and settles up to 4.

Additive increase and multiplicative decrease (TCP) was the alternative: it halves the streams of a datastore that
is a little slow, and takes as many intervals as there are streams to come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

GAIN = 0.5
SMOOTHING = 0.5  # the share of the newest observation in the mean that is acted on
LARGEST_STEP = 2.0  # one observation changes the allowance by this factor at most


@dataclass
class LatencyBrake:
    """The allowance of one datastore.

    Args:
        target_s: The mean latency of reads that it is held at when there is more work than it bears, in seconds.
        most: Streams, never more.
        fewest: Streams, never fewer.
    """

    target_s: float
    most: float
    fewest: float = 1.0
    allowed: float = field(init=False)
    _mean_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.allowed = self.most

    def observe(self, latency_s: float, in_use: float) -> float:
        """Take the mean latency of an interval in which `in_use` streams were at work; the allowance after it.

        Without streams nothing is learned about them: the mean starts anew, and the allowance stays.
        """
        if in_use <= 0 or latency_s <= 0:
            self._mean_s = 0.0
            return self.allowed
        known = self._mean_s or latency_s
        self._mean_s = known + SMOOTHING * (latency_s - known)
        factor = (self.target_s / self._mean_s) ** GAIN
        factor = min(max(factor, 1 / LARGEST_STEP), LARGEST_STEP)
        # The streams at work made the latency; of an allowance that is not used up nothing is known. One that is
        # above them comes down from them, and goes up from itself by no more than one stream above them.
        wanted = in_use * factor if factor < 1 else max(min(self.allowed * factor, in_use + 1), self.allowed)
        self.allowed = min(max(wanted, self.fewest), self.most)
        return self.allowed
