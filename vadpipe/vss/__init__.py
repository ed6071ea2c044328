"""The VSS manifest of a Windows snapshot: parsed, cross-checked, classified. Bytes in, verdict out.

archive         zip bytes -> members, within bounds
text, elements, parse   member bytes -> the values in `documents`; manifest: all members of a file
writers         well-known writers by id
evidence        the documents brought together writer by writer
sent            the quiesce spec, and what a type of backup does to a writer's logs
rules           the table of cross-checks (more of them in rules_*); classify: the table of decisions -> `verdict`
weigh           what the findings leave of each writer and application
require         what a job needs of the quiescing
"""

from .archive import ManifestUnreadable, read_members
from .classify import (
    DECISIONS,
    classify_documents,
    classify_manifest,
    classify_unfetched,
)
from .fetched import FetchedManifest, ManifestKind
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
    "FetchedManifest",
    "Finding",
    "Level",
    "ManifestKind",
    "ManifestUnreadable",
    "Require",
    "RequireApplication",
    "SentQuiescing",
    "Severity",
    "Verdict",
    "WriterVerdict",
    "classify_documents",
    "classify_manifest",
    "classify_unfetched",
    "parse_document",
    "read_members",
]
