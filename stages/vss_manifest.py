"""The step of a job on a Windows VM that judges the quiescing, and keeps the VSS manifest with the point.

The manifest lies there as soon as the snapshot does. So it is judged before a byte is read: what falls short of
the requirements costs another snapshot at most, not a transfer. Where there is none yet, or it could not be
fetched, the job goes on, and it is looked for once more at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal, Protocol

import trio

from pipeline import (
    Capture,
    ConfigError,
    Evidence,
    QuiescingShort,
    emit,
)
from vadpipe.vss.classify import classify_manifest, classify_unfetched
from vadpipe.vss.fetched import FetchedManifest, ManifestKind
from vadpipe.vss.require import LevelName, MissingWriter, Require
from vadpipe.vss.sent import SentQuiescing
from vadpipe.vss.verdict import Verdict

# What Microsoft advises between attempts when writers could not hold still (reference of DoSnapshotSet).
_RETRY_AFTER_S = 600.0

# Under which name a manifest lies with the point.
DOCUMENT_NAMES = {ManifestKind.VSS_ZIP: "vss-manifest.zip", ManifestKind.LINUX_XML: "quiesce-manifest.xml"}


class ManifestCapture(Capture, Protocol):
    """A capture that knows where the manifest of its snapshot is."""

    @property
    def quiescing_sent(self) -> SentQuiescing | None:
        """The quiesce spec that the snapshot was finally taken with; None when nobody knows it."""
        ...

    async def fetch_vss_manifest(self) -> FetchedManifest: ...


@dataclass(frozen=True)
class VssManifest:
    """A finisher: fetches the manifest, classifies it, holds it against what is required, and files it.

    `require`: a level, or a `Require`; by default what the job asks of the guest. `missing_writer`: whether a
    writer that took no part makes the point fall short ('fail') or not ('continue'). `excluded`: writers (by name,
    application or class id) that were left out on purpose: reported, and no reason for a lower level.
    `retries`: how often a new snapshot is taken, each after `retry_after_s`, when the first falls short.
    `on_shortfall`: 'publish' the point, marked, with exit code 3; or 'discard': nothing is published, exit code 1.

    Raises QuiescingShort only where this policy says so: a manifest that cannot be had is a verdict too. Cancel:
    leaves nothing behind.
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
        """The evidence before anything is read; None when there is no manifest (yet) and the job may go on.

        `attempt`: how many snapshots were given up before. Raises QuiescingShort.
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
        _tell(capture, verdict)
        return evidence

    async def finish(self, capture: ManifestCapture) -> Evidence:
        """The evidence, for what `examine` left open. Raises QuiescingShort when a shortfall is to be discarded."""
        verdict, evidence = await self._judged(capture, await capture.fetch_vss_manifest())
        if not evidence.satisfied and self.on_shortfall == "discard":
            raise self._short(capture, verdict, evidence, None)
        _tell(capture, verdict)
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
            reasons=[f"{finding.rule}: {finding.text}" for finding in verdict.findings],
            verdict={
                **verdict.as_dict(),
                "manifest": fetched.path,
                "fetching": [attempt.as_dict() for attempt in fetched.attempts],
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


def _tell(capture: ManifestCapture, verdict: Verdict) -> None:
    emit("quiescing", asked=capture.quiescing_asked, reached=str(verdict.level), reason=verdict.reason)


def _classified(fetched: FetchedManifest, sent: SentQuiescing | None, excluded: tuple[str, ...]) -> Verdict:
    if fetched.content is not None:
        return classify_manifest(fetched.content, sent=sent, excluded=excluded)
    if fetched.absent:
        return classify_manifest(None, absent_reason=fetched.reason)
    return classify_unfetched(fetched.reason)
