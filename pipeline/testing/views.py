"""Comparable pictures of items, for assertions."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..buffers import BufferPool
from ..values import EncodedFrame, PlannedFrame, Span


def plain(item: object) -> tuple[str, dict[str, Any]]:
    """The type of an item, its facts as plain values, and the bytes of a span's data."""
    facts = {name: _plain(value) for name, value in vars(item).items() if name != "buffer"}
    if isinstance(item, Span):
        facts["bytes"] = [item.bytes_of(offset, length).tobytes() for offset, length in item.data]
    return type(item).__name__, facts


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, PlannedFrame | EncodedFrame):
        return {name: _plain(fact) for name, fact in vars(value).items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def covers(views: Iterable[tuple[str, dict[str, Any]]], capacity: int) -> bool:
    """Whether pictured items lie one behind the other from 0 to `capacity`."""
    reached = 0
    for _, facts in views:
        if facts["offset"] != reached:
            return False
        reached += facts["length"]
    return reached == capacity


def all_free(pool: BufferPool) -> bool:
    """Whether no buffer is held; those of cancelled and crashed runs may have waited for the collector."""
    gc.collect()
    return pool.statistics().free == pool.statistics().buffers
