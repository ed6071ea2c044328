"""The bounds that an open disk works within."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a connection: requests in flight, patience in seconds, setbacks in a row."""

    depth: int
    call_timeout_s: float
    open_timeout_s: float
    end_timeout_s: float
    restarts: int
    restart_pause_s: float
