"""The VSS manifest of a Windows snapshot: parsed, cross-checked, classified; and what it says of a restore.

Bytes in, verdict out; bytes and verdict in, sheets for people out.

archive     zip bytes -> members, within bounds
xml, parse  member bytes -> the values in `documents`, within bounds; parse also reads all members of a manifest
writers     well-known writers by id
requested   the quiesce specification, and what a type of backup does to a writer's logs
evidence    the documents joined writer by writer
rules       the cross-checks
classify    the verdict on each writer and application, and the table of decisions that name the level
verdict     the result, and the way to JSON and back
require     what a job requires of it
material    what a restore reads of a manifest: documents, files, restore methods
advice      what people have to know of a restore with VSS
sheet       what lies beside a restored machine: the documents, and a sheet per writer
"""

from .classify import classify_manifest, classify_unfetched
from .requested import RequestedQuiescing
from .require import Require, RequireApplication
from .sheet import PointFacts, restore_sheet
from .verdict import Level, Verdict, read_verdict

__all__ = [
    "Level",
    "PointFacts",
    "RequestedQuiescing",
    "Require",
    "RequireApplication",
    "Verdict",
    "classify_manifest",
    "classify_unfetched",
    "read_verdict",
    "restore_sheet",
]
