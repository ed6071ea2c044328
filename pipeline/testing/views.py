"""Comparable views of items, for assertions."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..buffers import BufferPool
from ..values import Assignment, CutSpan, DigestedSpan, EncodedFrame, PlannedFrame, Span


def plain(item: object) -> tuple[str, dict[str, Any]]:
    """The type of an item, its facts as plain values, and the bytes of a span's data.

    The facts of a value that it holds count as its own, e.g. those of the span in a CutSpan.
    """
    return type(item).__name__, _facts(item)


def _facts(item: object) -> dict[str, Any]:
    if not hasattr(item, "__dict__"):
        return {"value": item}
    facts: dict[str, Any] = {}
    for name, value in vars(item).items():
        if isinstance(value, Span | CutSpan | DigestedSpan | Assignment):
            facts |= _facts(value)
        elif name != "buffer":
            facts[name] = _plain(value)
    if isinstance(item, Span):
        facts["bytes"] = [item.bytes_of(offset, length).tobytes() for offset, length in item.data]
    return facts


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, PlannedFrame | EncodedFrame):
        return _facts(value)
    return [_plain(part) for part in value] if isinstance(value, list) else value


def covers(views: Iterable[tuple[str, dict[str, Any]]], capacity: int) -> bool:
    """Whether the items of these views follow one another from 0 to `capacity` without a gap."""
    reached = 0
    for _, facts in views:
        if facts["offset"] != reached:
            return False
        reached += facts["length"]
    return reached == capacity


def all_free(pool: BufferPool) -> bool:
    """Whether no buffer is in use. Collects garbage first: it gives back the buffers of cancelled runs."""
    gc.collect()
    return pool.statistics().free == pool.statistics().buffers
