"""The VSS manifest of a Windows snapshot: found, parsed, cross-checked, classified. Kernels, but for the finisher.

find            which file on the datastore belongs to the snapshot
datastore_path  `[ds] dir/file` and its `/folder` URL
archive         zip bytes -> members, within bounds
text, elements, parse   member bytes -> the values in `documents`; manifest: all members of a file
writers         well-known writers by id
evidence        the documents brought together writer by writer
sent            the quiesce spec, and what a type of backup does to a writer's logs
rules           the table of cross-checks (more of them in rules_*); classify: the table of decisions -> `verdict`
weigh           what the findings leave of each writer and application
require         what a job needs; finisher: VssManifest, the step of a job that brings all of this to a point
"""

from stages.vss.archive import ManifestUnreadable, read_members
from stages.vss.classify import DECISIONS, classify_documents, classify_manifest, classify_unfetched
from stages.vss.datastore_path import DatastorePath, folder_url
from stages.vss.fetched import FetchedManifest
from stages.vss.find import FoundBy, FoundManifest, ManifestKind, find_manifest
from stages.vss.finisher import ManifestCapture, VssManifest
from stages.vss.parse import parse_document
from stages.vss.require import Require, RequireApplication
from stages.vss.rules import RULES
from stages.vss.sent import SentQuiescing
from stages.vss.verdict import (
    ApplicationVerdict,
    Coverage,
    Finding,
    Level,
    Severity,
    Verdict,
    WriterVerdict,
)

__all__ = [
    "DECISIONS",
    "RULES",
    "ApplicationVerdict",
    "Coverage",
    "DatastorePath",
    "FetchedManifest",
    "Finding",
    "FoundBy",
    "FoundManifest",
    "Level",
    "ManifestCapture",
    "ManifestKind",
    "ManifestUnreadable",
    "Require",
    "RequireApplication",
    "SentQuiescing",
    "Severity",
    "Verdict",
    "VssManifest",
    "WriterVerdict",
    "classify_documents",
    "classify_manifest",
    "classify_unfetched",
    "find_manifest",
    "folder_url",
    "parse_document",
    "read_members",
]
