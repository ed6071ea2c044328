"""A VM read from its own files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pipeline.buffers import DEFAULT_POOL
from pipeline.errors import SourceError
from vadpipe.exclude import expect_patterns
from vadpipe.vmdk.directory import find_vmx
from vadpipe.vmdk.local import LocalCapture, open_vm


class LocalVm:
    """The VM whose files lie in `directory`, as the `machine` of a job.

    With a .vmx, its disks; without one, every VMDK of the directory that is not part of another.

    Args:
        directory: Holds the VM's files.
        name: For people; the default is the VM's own.
        pool_size: Bytes of the buffers that its disks are read into.
        outside: Other directories in which its files may lie, e.g. that of a linked clone's parent. Descriptors and
            links that lead anywhere else are refused: whoever made the VM could name any file of this machine.
        exclude: Keys ('scsi0:1'), labels ('data.vmdk') or glob patterns of disks to leave out; each must match.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        pool_size: int = DEFAULT_POOL,
        outside: Iterable[str | os.PathLike[str]] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        expect_patterns(exclude)
        self._directory = Path(directory)
        self._name = name
        self.pool_size = pool_size
        self._outside = [Path(other) for other in outside]
        self._exclude = exclude

    def __repr__(self) -> str:
        named = f", name={self._name!r}" if self._name else ""
        outside = f", outside={[str(other) for other in self._outside]!r}" if self._outside else ""
        exclude = f", exclude={self._exclude!r}" if self._exclude else ""
        return f"LocalVm({str(self._directory)!r}{named}{outside}{exclude})"

    @property
    def name(self) -> str:
        return self._name or self._directory.name or str(self._directory)

    def effects(self) -> Sequence[str]:
        """Reading changes nothing."""
        return (f"Leaves out its disks {', '.join(self._exclude)}.",) if self._exclude else ()

    def missing(self) -> Sequence[str]:
        """What a run would fail for now, a sentence each; for `plan`."""
        try:
            find_vmx(self._directory)
        except SourceError as error:
            return [str(error)]
        return []

    def capture(self) -> AbstractAsyncContextManager[LocalCapture]:
        """Open all files of the VM, and close them at the end. Raises SourceError."""
        return open_vm(
            self._directory,
            name=self._name,
            pool_size=self.pool_size,
            outside=self._outside,
            exclude=self._exclude,
        )
