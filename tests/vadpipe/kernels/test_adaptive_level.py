"""The adaptive level against a model of a pipeline: a store of some speed, and what each level takes and saves."""

import itertools

import pytest

from vadpipe.kernels.adaptive_level import STRONGEST, WEAKEST, AdaptiveLevel

SPAN_MIB = 4.0

# MiB/s of two threads, and how many times smaller the data gets; as zstd does it, roughly.
LEVELS = {
    level: (600 / 1.35 ** (level - 1), 2.5 + 0.08 * (level - 1)) for level in range(WEAKEST, STRONGEST + 1)
}


def play(store_mib_per_s: float, disk_mib_per_s: float = 1e9, spans: int = 20_000):
    """The level of each span, and when the last one was stored: three stages, one item between each two."""
    adaptive = AdaptiveLevel()
    read_s = compressed_s = stored_s = blocked_s = starved_s = 0.0
    levels = []
    for _ in range(spans):
        level = adaptive.observe(compressed_s, blocked_s, starved_s)
        levels.append(level)
        speed, ratio = LEVELS[level]
        read_s = max(read_s + SPAN_MIB / disk_mib_per_s, compressed_s)
        starved_s += read_s - compressed_s
        done_s = read_s + SPAN_MIB / speed
        taken_s = max(done_s, stored_s)
        blocked_s += taken_s - done_s
        compressed_s = taken_s
        stored_s = taken_s + SPAN_MIB / ratio / store_mib_per_s
    return levels, stored_s


def of_one_level(level: int, store_mib_per_s: float, disk_mib_per_s: float, spans: int) -> float:
    """When the last span is stored at a level that stays."""
    speed, ratio = LEVELS[level]
    slowest = min(speed, store_mib_per_s * ratio, disk_mib_per_s)
    return spans * SPAN_MIB / slowest


def test_a_store_that_is_not_waited_for_gets_the_weakest_level():
    levels, _ = play(store_mib_per_s=10_000)
    assert set(levels) == {WEAKEST}


@pytest.mark.parametrize("store", [1, 5, 12, 25, 60, 110, 200])
def test_it_is_as_strong_as_the_store_is_slow_and_never_much_slower_than_the_best_level(store):
    spans = max(2_000, 400 * store)
    levels, took_s = play(store, spans=spans)
    best_s = min(of_one_level(level, store, 1e9, spans) for level in LEVELS)
    assert took_s <= 1.06 * best_s
    weakest_s = of_one_level(WEAKEST, store, 1e9, spans)
    assert took_s <= 1.02 * weakest_s
    settled = levels[len(levels) // 4 :]
    usual = max(set(settled), key=settled.count)
    best = min(LEVELS, key=lambda level: (round(of_one_level(level, store, 1e9, spans), 6), level))
    assert abs(usual - best) <= 1


def test_a_slow_disk_does_not_weaken_the_level_that_a_slow_store_asked_for():
    levels, _ = play(store_mib_per_s=1, spans=1_000)
    assert levels[-1] == STRONGEST
    levels, _ = play(store_mib_per_s=10_000, disk_mib_per_s=20, spans=1_000)
    assert set(levels) == {WEAKEST}


def test_it_follows_a_store_that_becomes_fast():
    adaptive = AdaptiveLevel()
    blocked_s = 0.0
    now = itertools.count(step=0.1)
    for at_s, _ in zip(now, range(200), strict=False):
        blocked_s += 0.08
        slow = adaptive.observe(at_s, blocked_s, 0.0)
    assert slow == STRONGEST
    for at_s, _ in zip(now, range(200), strict=False):
        fast = adaptive.observe(at_s, blocked_s, 0.0)
    assert fast == WEAKEST
