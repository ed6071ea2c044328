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

from stages.vss_manifest import ManifestCapture, VssManifest
from vadpipe.vsphere.inventory.datastore_path import DatastorePath, folder_url
from vadpipe.vsphere.manifest.locate import (
    FoundBy,
    FoundManifest,
    ManifestKind,
    find_manifest,
)

from .archive import ManifestUnreadable, read_members
from .classify import (
    DECISIONS,
    classify_documents,
    classify_manifest,
    classify_unfetched,
)
from .fetched import FetchedManifest
from .parse import parse_document
from .require import Require, RequireApplication
from .rules import RULES
from .sent import SentQuiescing
from .verdict import (
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
