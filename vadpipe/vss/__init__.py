"""The VSS manifest of a Windows snapshot: parsed, cross-checked, classified. Bytes in, verdict out.

archive     zip bytes -> members, within bounds
xml, parse  member bytes -> the values in `documents`, within bounds; parse also reads all members of a manifest
writers     well-known writers by id
requested   the quiesce specification, and what a type of backup does to a writer's logs
evidence    the documents joined writer by writer
rules       the cross-checks
classify    the verdict on each writer and application, and the table of decisions that name the level
verdict     the result, and the way to JSON and back
require     what a job requires of it
"""

from vadpipe.rules import Severity

from .archive import ManifestUnreadable, read_members
from .classify import DECISIONS, classify_documents, classify_manifest, classify_unfetched
from .fetched import FetchedManifest, ManifestKind
from .parse import parse_document
from .requested import RequestedQuiescing
from .require import Require, RequireApplication
from .rules import COVERAGE_RULES, RULES
from .verdict import ApplicationVerdict, Contradiction, Coverage, Level, Verdict, WriterVerdict, read_verdict

__all__ = [
    "COVERAGE_RULES",
    "DECISIONS",
    "RULES",
    "ApplicationVerdict",
    "Contradiction",
    "Coverage",
    "FetchedManifest",
    "Level",
    "ManifestKind",
    "ManifestUnreadable",
    "RequestedQuiescing",
    "Require",
    "RequireApplication",
    "Severity",
    "Verdict",
    "WriterVerdict",
    "classify_documents",
    "classify_manifest",
    "classify_unfetched",
    "parse_document",
    "read_members",
    "read_verdict",
]
