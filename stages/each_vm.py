"""EachVm: a job for each VM of a selection, made when a command runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, MoverError
from pipeline.job import Job
from vadpipe.vsphere.api.session import Vcenter
from vadpipe.vsphere.inventory.lookup import Vm
from vadpipe.vsphere.inventory.selection import SelectVms, select_vms
from vadpipe.vsphere.inventory.tags import require_password


@dataclass(frozen=True)
class EachVm:
    """A `pipeline.JobSource`: one job for each selected VM, by inventory path. Settings only, no I/O.

    `select`: a selection, or several: a VM that is in more than one has one job. `job` makes the job of a VM, which
    goes as it is into `VcenterVm(vcenter, vm, ...)`: the job then finds this very VM again by its moref, however it
    is called by then, and bears its name, or its inventory path where several VMs of the vCenter have that name.

    >>> EachVm(vcenter, SelectVms(tag="backup/daily"), lambda vm: Job(VcenterVm(vcenter, vm, ...), path, store))
    """

    vcenter: Vcenter
    select: SelectVms | Sequence[SelectVms]
    job: Callable[[Vm], Job[Any, Any]]

    def __post_init__(self) -> None:
        if not self._selections:
            raise ConfigError("EachVm has no selection.", remedy="Give one, e.g. SelectVms('web*').")
        if any(part.tag for selection in self._selections for part in selection.parts()):
            require_password(self.vcenter)

    @property
    def title(self) -> str:
        return f"each VM on {self.vcenter.server} {'; or '.join(map(str, self._selections))}"

    async def jobs(self) -> Sequence[Job[Any, Any]]:
        """Raises SourceError: nothing is selected, or the vCenter cannot tell; ConfigError: `job` failed."""
        async with self.vcenter.connect() as session:
            vms = await select_vms(session, self._selections)
        return [self._job_of(vm) for vm in vms]

    def planned(self) -> Job[Any, Any]:
        return self._job_of(Vm("", "each VM", "/each VM", "", ""))

    def effects(self) -> Sequence[str]:
        server = self.vcenter.server
        return [
            f"Selects on {server}, when the command runs, every VM {selection}."
            for selection in self._selections
        ]

    @property
    def _selections(self) -> Sequence[SelectVms]:
        return [self.select] if isinstance(self.select, SelectVms) else self.select

    def _job_of(self, vm: Vm) -> Job[Any, Any]:
        try:
            job = self.job(vm)
        except MoverError:
            raise
        except Exception as exc:
            raise ConfigError(
                f"The job of {self.title} cannot be made for {vm.path}: {type(exc).__name__}: {exc}.",
                remedy="Correct the function job=; `plan` and `cleanup` call it with a VM named 'each VM'.",
            ) from exc
        if not isinstance(job, Job):
            raise ConfigError(
                f"The function job= of {self.title} gave {job!r} for {vm.path}.",
                remedy="Let it return a pipeline.Job.",
            )
        return job
