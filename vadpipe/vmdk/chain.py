"""Opening a disk: the files of each descriptor, and the parents up to the base.

A chain is checked as it is opened: every part is as long as its descriptor says, and every parent still has the
content id that its child names. A damaged chain fails here, before a byte was stored.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pipeline.errors import SourceError

from . import redo, sparse
from .descriptor import HEAD, MAX_DESCRIPTOR, Descriptor, ExtentLine, looks_like_descriptor, parse_descriptor
from .files import DiskFile, OpenFiles, cut_off
from .grains import GrainTables
from .layout import Layout, Link, Part, Source

_FLAT: Final = frozenset({"FLAT", "VMFS"})
_SPARSE: Final = frozenset({"SPARSE", "VMFSSPARSE", "SESPARSE"})


def open_layout(path: Path, files: OpenFiles) -> Layout:
    """Open a disk and all its parents. Raises SourceError; the caller closes `files`."""
    sources: list[Source] = []
    links = [open_link(path, files, sources)]
    seen = {files.open(path).path}
    while links[-1].descriptor.has_parent:
        child = links[-1]
        parent = find_beside(child.path, child.descriptor.parent_hint, "parent")
        if files.open(parent).path in seen:
            raise SourceError(
                f"The chain of {path} loops: {child.path} names {parent} as its parent, which builds on it.",
                remedy="Correct the parentFileNameHint of one of the two descriptors.",
                file=str(child.path),
                parent=str(parent),
            )
        seen.add(files.open(parent).path)
        links.append(open_link(parent, files, sources))
        _check_content_id(child, links[-1])
    return Layout(links, sources)


def read_descriptor(path: Path, files: OpenFiles) -> tuple[Descriptor, sparse.SparseHeader | None] | None:
    """The descriptor of a VMDK, with the sparse header of the file if it lies inside one.

    None if the file has no descriptor: it is a data file. Raises SourceError.
    """
    file = files.open(path)
    head = file.read(0, min(HEAD, file.size), "head")
    if head.startswith(sparse.MAGIC):
        header = sparse.read_header(file)
        text = sparse.embedded_descriptor(header, file)
        return None if text is None else (parse_descriptor(text, file.name), header)
    if looks_like_descriptor(head):
        text = file.read(0, min(file.size, MAX_DESCRIPTOR + 1), "descriptor")
        return parse_descriptor(text, file.name), None
    return None


def open_link(path: Path, files: OpenFiles, sources: list[Source]) -> Link:
    """Open one link of a chain; the files of its parts are appended to `sources`."""
    described = read_descriptor(path, files)
    if described is None:
        raise SourceError(
            f"{path} has no VMDK descriptor.",
            remedy="Name the descriptor of the disk; a data file alone does not say what disk it belongs to.",
            file=str(path),
        )
    descriptor, header = described
    if header is not None and [line.kind for line in descriptor.extents] != ["SPARSE"]:
        raise SourceError(
            f"{path} is one sparse file, but its descriptor names other extents than that one.",
            remedy="Restore the file; its descriptor is damaged.",
            file=str(path),
        )
    parts: list[Part] = []
    start = 0
    for line in descriptor.extents:
        if not line.length:
            continue
        # A file that holds its own descriptor was perhaps renamed since: it is what it names.
        file = files.open(path) if header else _extent_file(path, line, files)
        parts.append(_open_part(path, line, file, start, sources))
        start += line.length
    return Link(path, descriptor, parts, bool(header and header.unclean_shutdown))


def find_beside(path: Path, name: str, what: str) -> Path:
    """The file that `path` names: relative to it, or, after a move, a file of that name beside it.

    A name in another case serves if there is one such file: Windows and macOS do not mind the case of a name.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    for candidate in (path.parent / name, path.parent / last):
        if name and os.path.isfile(candidate):  # unlike Path.is_file, False for every unusable name
            return candidate
    alike = [other for other in _names_in(path.parent) if other.casefold() == last.casefold()]
    if len(alike) == 1 and os.path.isfile(path.parent / alike[0]):
        return path.parent / alike[0]
    raise SourceError(
        f"The {what} of {path}, {name!r}, is missing.",
        remedy=f"Put it beside {path.name}, or correct its name there.",
        file=str(path),
        missing=name,
    )


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _extent_file(path: Path, line: ExtentLine, files: OpenFiles) -> DiskFile | None:
    if line.kind == "ZERO":
        return None
    if line.kind not in _FLAT | _SPARSE or line.access == "NOACCESS":
        raise SourceError(
            f"Line {line.line} of {path} is an extent {line.access} {line.kind}, which is not in a file.",
            remedy="A raw device mapping has to be backed up inside the guest; or clone the disk to files.",
            file=str(path),
            line=line.line,
        )
    return files.open(find_beside(path, line.name or "", "extent"))


def _open_part(
    path: Path, line: ExtentLine, file: DiskFile | None, start: int, sources: list[Source]
) -> Part:
    if file is None:
        return Part(start, line.length)
    number = len(sources)
    if line.kind in _FLAT:
        if line.offset + line.length > file.size:
            raise cut_off(file.name, file.size, line.offset, line.length, f"part named in {path}")
        sources.append(Source(file))
        return Part(start, line.length, number, line.offset)
    source, tables = _open_sparse(file)
    if tables.capacity < line.length:
        raise SourceError(
            f"{path} gives {file.name} {line.length} bytes of the disk, its own header {tables.capacity}.",
            remedy="One of the two files is of another disk or of another time; restore both.",
            file=file.name,
            expected=line.length,
            found=tables.capacity,
        )
    sources.append(source)
    return Part(start, line.length, number, tables=tables)


def _open_sparse(file: DiskFile) -> tuple[Source, GrainTables]:
    magic = file.read(0, min(8, file.size), "head")
    if magic.startswith(sparse.MAGIC):
        header = sparse.read_header(file)
        deflated = sparse.Deflated(file, header.grain, header.has_markers) if header.packed else None
        return Source(file, deflated), sparse.grain_tables(header, file)
    if magic.startswith(redo.COWD_MAGIC):
        return Source(file), redo.cowd_tables(file)
    if magic == redo.SE_SPARSE_MAGIC:
        return Source(file), redo.se_sparse_tables(file)
    raise SourceError(
        f"{file.name} is named as a sparse extent, but begins with {magic!r}.",
        remedy="The file is damaged or of another kind; restore it.",
        file=file.name,
    )


def _check_content_id(child: Link, parent: Link) -> None:
    if child.descriptor.parent_content_id != parent.descriptor.content_id:
        asked, found = child.descriptor.parent_content_id or 0, parent.descriptor.content_id
        raise SourceError(
            f"{child.path} builds on content {asked:08x} of {parent.path}, which now has"
            f" {'none' if found is None else f'{found:08x}'}: the parent was changed after the child was made.",
            remedy="Restore the parent as it was; or, if only its id changed, correct parentCID in the child.",
            file=str(child.path),
            parent=str(parent.path),
            expected=asked,
            found=found,
        )
