"""How long a cut-over takes, from the figures of the increments."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .state import ReplicaState


@dataclass(frozen=True)
class Estimate:
    """A cut-over that begins now. Bytes per second: `change_rate` of the VM, `copy_rate` of increments.

    `pending`: bytes that changed since the last increment, as far as the rate tells. `warm_s`: an increment with
    the VM on, that comes first. `last_s`: the last one. `proof_s`: reading the replica back; None: never measured.
    """

    change_rate: float
    copy_rate: float
    pending: float
    warm_s: float
    last_s: float
    proof_s: float | None
    increments: int


def estimate(
    state: ReplicaState, now: float | None = None, *, unproved: int | None = None
) -> Estimate | None:
    """From the increments that are kept; None where there is none.

    The change rate is what increments touched over the time between their ends. Each increment costs what it took
    besides moving data (snapshots), and its bytes at the copy rate. The last one holds what changes during the one
    before it. The proof takes what the last one took; where only `unproved` bytes and what comes meanwhile are
    read, its part of that.
    """
    if not state.increments:
        return None
    now = time.time() if now is None else now
    changed = interval = 0.0
    for before, after in zip(state.increments, state.increments[1:], strict=False):
        if not after.full:
            changed += after.touched
            interval += after.ended - before.ended
    read = sum(one.read for one in state.increments)
    moving_s = sum(one.moving_s for one in state.increments)
    change_rate = changed / interval if interval > 0 else 0.0
    copy_rate = read / moving_s if moving_s > 0 else 0.0
    overhead_s = sum(one.wall_s - one.moving_s for one in state.increments) / len(state.increments)
    pending = change_rate * max(now - state.increments[-1].ended, 0.0)
    per_byte_s = 1 / copy_rate if copy_rate else 0.0
    warm_s = overhead_s + pending * per_byte_s
    proof_s = state.proof.wall_s if state.proof else None
    if state.proof and unproved is not None and state.proof.read:
        proof_s = state.proof.wall_s * min((unproved + pending) / state.proof.read, 1.0)
    return Estimate(
        change_rate=change_rate,
        copy_rate=copy_rate,
        pending=pending,
        warm_s=warm_s,
        last_s=overhead_s + change_rate * warm_s * per_byte_s,
        proof_s=proof_s,
        increments=len(state.increments),
    )
