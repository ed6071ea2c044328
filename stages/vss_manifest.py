"""The step of a job that judges the quiescing by the VSS manifest, and keeps the manifest with the restore point.

The manifest exists as soon as the snapshot does, so it is judged before a byte is read: a shortfall costs another
snapshot at most, not a transfer. When it is not there yet, or cannot be fetched, the job goes on and asks once more
at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal, Protocol

import trio

from pipeline import Capture, ConfigError, Evidence, QuiescingShort, emit
from vadpipe.jsonable import jsonable
from vadpipe.vss.classify import classify_manifest, classify_unfetched
from vadpipe.vss.fetched import DOCUMENT_NAMES, FetchedManifest
from vadpipe.vss.requested import RequestedQuiescing
from vadpipe.vss.require import LevelName, MissingWriter, Require
from vadpipe.vss.verdict import Verdict

# What Microsoft advises between attempts when writers could not hold still (reference of DoSnapshotSet).
_RETRY_AFTER_S = 600.0


class ManifestCapture(Capture, Protocol):
    """A capture that knows where the manifest of its snapshot is."""

    @property
    def quiescing_sent(self) -> RequestedQuiescing | None:
        """The quiesce specification that the snapshot was finally taken with; None when it is not known."""
        ...

    async def fetch_vss_manifest(self) -> FetchedManifest: ...


@dataclass(frozen=True)
class VssManifest:
    """A finisher: fetches the manifest, classifies it, compares it with what is required, and stores it.

    Args:
        require: A level, or a `Require`; by default the quiescing that the job requests.
        missing_writer: 'fail': a writer that took no part makes the point fall short; 'continue': it does not.
        excluded: Writers (by name, application or class id) that are left out on purpose: reported, and no
            reason for a lower level.
        on_shortfall: 'publish': the point is published with a mark, exit code 3. 'discard': nothing is
            published, exit code 1.
        retries: How often a new snapshot is taken when the first falls short.
        retry_after_s: Pause before each of them.

    Raises:
        QuiescingShort: Where this policy says so. A manifest that cannot be fetched is a verdict, not an error.

    Cancel: leaves nothing behind.
    """

    require: Require | LevelName = field(default_factory=Require)
    _: KW_ONLY
    missing_writer: MissingWriter = "fail"
    excluded: Sequence[str] = ()
    on_shortfall: Literal["publish", "discard"] = "publish"
    retries: int = 0
    retry_after_s: float = _RETRY_AFTER_S

    def __post_init__(self) -> None:
        _ = self._required
        if self.missing_writer not in ("fail", "continue") or self.on_shortfall not in ("publish", "discard"):
            raise ConfigError(
                f"missing_writer={self.missing_writer!r}, on_shortfall={self.on_shortfall!r} is no policy.",
                remedy="Choose 'fail' or 'continue', and 'publish' or 'discard'.",
            )
        if isinstance(self.excluded, str):
            raise ConfigError(
                f"excluded is the text {self.excluded!r}.", remedy=f"Write excluded=({self.excluded!r},)."
            )
        if self.retries < 0 or self.retry_after_s < 0:
            raise ConfigError(
                "retries and retry_after_s are not negative.", remedy="Give 0 for one snapshot only."
            )

    async def examine(self, capture: ManifestCapture, attempt: int) -> Evidence | None:
        """The evidence before anything is read; None when there is no manifest yet and the job may go on.

        Args:
            capture: The snapshot.
            attempt: How many snapshots were given up before.

        Raises:
            QuiescingShort: Too little was reached; with `retry_after_s` for another snapshot.
        """
        fetched = await capture.fetch_vss_manifest()
        verdict, evidence = await self._judged(capture, fetched)
        sent = capture.quiescing_sent
        could_be_better = sent is not None and sent.kind != "none"
        if not evidence.satisfied and attempt < self.retries and could_be_better:
            raise self._short(capture, verdict, evidence, self.retry_after_s)
        if not evidence.satisfied and self.on_shortfall == "discard":
            raise self._short(capture, verdict, evidence, None)
        if fetched.content is None:
            return None
        _announce(capture, verdict)
        return evidence

    async def finish(self, capture: ManifestCapture) -> Evidence:
        """The evidence, where `examine` gave none.

        Raises:
            QuiescingShort: Too little was reached, and the policy is 'discard'.
        """
        verdict, evidence = await self._judged(capture, await capture.fetch_vss_manifest())
        if not evidence.satisfied and self.on_shortfall == "discard":
            raise self._short(capture, verdict, evidence, None)
        _announce(capture, verdict)
        return evidence

    @property
    def _required(self) -> Require:
        return self.require if isinstance(self.require, Require) else Require(self.require)

    async def _judged(self, capture: ManifestCapture, fetched: FetchedManifest) -> tuple[Verdict, Evidence]:
        classify = partial(_classified, fetched, capture.quiescing_sent, tuple(self.excluded))
        verdict = await trio.to_thread.run_sync(classify)
        shortfalls = self._required.shortfalls(verdict, capture.quiescing_asked, self.missing_writer)
        evidence = Evidence(
            reached=str(verdict.level),
            satisfied=not shortfalls,
            reasons=[f"{finding.rule}: {finding.found}" for finding in verdict.findings],
            verdict={
                **verdict.as_dict(),
                "manifest": fetched.path,
                "fetching": jsonable(fetched.attempts),
                "shortfalls": list(shortfalls),
            },
            documents={DOCUMENT_NAMES[fetched.kind]: fetched.content} if fetched.content is not None else {},
            shortfalls=shortfalls,
        )
        return verdict, evidence

    def _short(
        self, capture: ManifestCapture, verdict: Verdict, evidence: Evidence, retry_after_s: float | None
    ) -> QuiescingShort:
        return QuiescingShort(
            f"The snapshot of {capture.machine.name} is not as consistent as required. "
            + f"{' '.join(evidence.shortfalls)} {verdict.reason[:1].upper()}{verdict.reason[1:]}.",
            remedy="See 'vssadmin list writers' in the guest; or require less, or publish with a mark.",
            retry_after_s=retry_after_s,
            vm=capture.machine.name,
            reached=evidence.reached,
            shortfalls=list(evidence.shortfalls),
        )


def _announce(capture: ManifestCapture, verdict: Verdict) -> None:
    emit("quiescing", asked=capture.quiescing_asked, reached=str(verdict.level), reason=verdict.reason)


def _classified(
    fetched: FetchedManifest, requested: RequestedQuiescing | None, excluded: tuple[str, ...]
) -> Verdict:
    if fetched.content is not None:
        return classify_manifest(fetched.content, requested=requested, excluded=excluded)
    if fetched.absent:
        return classify_manifest(None, absent_reason=fetched.reason)
    return classify_unfetched(fetched.reason)
