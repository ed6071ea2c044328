"""The last step of a job on a Windows VM: keep the VSS manifest with the point, and say what it proves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

from pipeline import Capture, Evidence, emit

from .classify import classify_manifest, classify_unfetched
from .fetched import FetchedManifest
from .find import ManifestKind
from .verdict import Level, Verdict

# What each kind of quiescing has to show. Nothing was asked with 'none', so everything satisfies it.
REQUIRED = {"application": Level.APPLICATION, "file-system": Level.FILE_SYSTEM}

# Under which name a manifest lies with the point.
DOCUMENT_NAMES = {ManifestKind.VSS_ZIP: "vss-manifest.zip", ManifestKind.LINUX_XML: "quiesce-manifest.xml"}


class ManifestCapture(Capture, Protocol):
    """A capture that knows where the manifest of its snapshot is."""

    async def fetch_vss_manifest(self) -> FetchedManifest: ...


@dataclass(frozen=True)
class VssManifest:
    """A finisher: fetches the manifest while the snapshot exists, classifies it, and files both with the point.

    Never fails a job: a manifest that cannot be had is a verdict too. Cancel: leaves nothing behind.
    """

    async def finish(self, capture: ManifestCapture) -> Evidence:
        fetched = await capture.fetch_vss_manifest()
        verdict = await trio.to_thread.run_sync(_judge, fetched)
        required = REQUIRED.get(capture.quiescing_asked)
        emit("quiescing", asked=capture.quiescing_asked, reached=str(verdict.level), reason=verdict.reason)
        return Evidence(
            reached=str(verdict.level),
            satisfied=required is None or verdict.level >= required,
            reasons=[f"{finding.rule}: {finding.text}" for finding in verdict.findings],
            verdict={
                **verdict.as_dict(),
                "manifest": fetched.path,
                "fetching": [attempt.as_dict() for attempt in fetched.attempts],
            },
            documents={DOCUMENT_NAMES[fetched.kind]: fetched.content} if fetched.content is not None else {},
        )


def _judge(fetched: FetchedManifest) -> Verdict:
    if fetched.content is not None:
        return classify_manifest(fetched.content)
    if fetched.absent:
        return classify_manifest(None, absent_reason=fetched.reason)
    return classify_unfetched(fetched.reason)
