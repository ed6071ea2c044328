"""The brake against models of datastores whose latency rises with their load."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadpipe.fleet.brake import LatencyBrake
from vadpipe.fleet.scheduler import Policy, Scheduler
from vadpipe.fleet.values import Ended, LatencyObserved, Proxy, Request, Start, Submitted, Way, streams

TARGET_S = 0.010
MOST = 32


def linear(n):
    """Each stream adds the same: a queue in front of one server."""
    return 0.001 + 0.0008 * n


def knee(n):
    """Nothing until 10 streams, then steep: a cache that overflows, an array at its limit."""
    return 0.004 * max(1.0, n / 10) ** 2


def crowded(n):
    """Near its capacity of 24 streams latency grows without bound."""
    return 0.003 / max(0.02, 1 - n / 24)


MODELS = [linear, knee, crowded]


def oracle(latency, depth=4):
    """The most reads per second with a mean latency of the target: between two numbers of streams if need be.

    A stream keeps `depth` reads outstanding, so that n streams do n * depth / latency(n) of them a second.
    """
    low = max(n for n in range(1, MOST + 1) if latency(n) <= TARGET_S)
    if low == MOST:
        return low * depth / latency(low)
    share = (TARGET_S - latency(low)) / (latency(low + 1) - latency(low))
    return (1 - share) * low * depth / latency(low) + share * (low + 1) * depth / latency(low + 1)


@pytest.mark.parametrize("latency", MODELS)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_latency_is_held_at_the_target_and_little_throughput_is_lost(latency, noise):
    random_ = random.Random(1)
    brake = LatencyBrake(TARGET_S, MOST)
    seen, reads = [], []
    for at in range(400):
        n = max(1, int(brake.allowed))
        brake.observe(latency(n) * random_.uniform(1 - noise, 1 + noise), n)
        if at >= 40:
            seen.append(latency(n))
            reads.append(n * 4 / latency(n))
    assert sum(seen) / len(seen) == pytest.approx(TARGET_S, rel=0.1)
    assert sum(reads) / len(reads) >= 0.9 * oracle(latency)


@pytest.mark.parametrize("latency", MODELS)
def test_the_scheduler_holds_the_target_with_jobs_that_come_and_go(latency):
    """A job reads for some intervals and cannot be taken back; the brake decides whether the next one starts."""
    random_ = random.Random(2)
    name = streams("d1")
    kernel = Scheduler({name: MOST}, [Proxy("p1", 99)], policy=Policy(latency_s=TARGET_S))
    left: dict[str, int] = {}

    def act(decisions):
        for decision in decisions:
            if isinstance(decision, Start):
                left[decision.job] = random_.randint(2, 12)

    act(kernel.take(Submitted(0, [Request(f"j{n}", [Way("nbdssl", {name: 1})]) for n in range(4000)])))
    seen, reads = [], []
    for at in range(600):
        act(kernel.take(LatencyObserved(at, "d1", latency(len(left)))))
        if at >= 60:
            seen.append(latency(len(left)))
            reads.append(len(left) * 4 / latency(len(left)))
        for job in [job for job in left if left[job] <= 1]:
            del left[job]
            act(kernel.take(Ended(at, job)))
        for job in left:
            left[job] -= 1
    assert sum(seen) / len(seen) == pytest.approx(TARGET_S, rel=0.1)
    assert sum(reads) / len(reads) >= 0.9 * oracle(latency)


def test_a_fast_datastore_gets_all_its_streams_back():
    brake = LatencyBrake(TARGET_S, MOST)
    for _ in range(20):
        brake.observe(10 * TARGET_S, max(1, int(brake.allowed)))
    assert brake.allowed < 3
    for _ in range(80):
        brake.observe(TARGET_S / 10, max(1, int(brake.allowed)))
    assert brake.allowed == MOST


def test_of_streams_that_are_not_used_nothing_is_learned():
    brake = LatencyBrake(TARGET_S, MOST)
    brake.observe(10 * TARGET_S, 4)
    held = brake.allowed
    assert brake.observe(0.0, 0) == held
    assert brake.observe(TARGET_S / 100, 0) == held


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100))))
def test_the_allowance_stays_within_its_bounds(observations):
    brake = LatencyBrake(TARGET_S, MOST, fewest=2)
    for latency, in_use in observations:
        assert 2 <= brake.observe(latency, in_use) <= MOST
