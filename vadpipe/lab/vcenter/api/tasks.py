"""Tasks: long operations on threads of their own, with the life that clients watch.

A task is queued, runs with progress, and ends in success or error. Its given time passes half before and half
after the work, so that a client sees every state also when the work itself takes no time.
"""

from __future__ import annotations

import copy
import itertools
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from .managed import Call, Entity, Managed, vim_property

if TYPE_CHECKING:
    from ..service import Service

_log = logging.getLogger(__name__)

Work = Callable[[], object]
_QUEUED, _BEFORE, _AFTER = 0.1, 0.4, 0.5  # shares of a task's time


def system_error(error: Exception) -> vmodl.fault.SystemError:
    """How a defect of the lab itself looks to a client."""
    return vmodl.fault.SystemError(reason=repr(error), msg=f"A general system error occurred: {error!r}")


class Task(Managed):
    """One task. entity: what it works on; exclusive: no second such task may run on that entity."""

    vim_type = vim.Task

    def __init__(
        self, service: Service, moref: str, call: Call, entity: Entity | None, exclusive: bool
    ) -> None:
        super().__init__(service, moref)
        self.entity = entity
        self.exclusive = exclusive
        self._info = vim.TaskInfo(
            key=moref,
            task=self.ref,
            descriptionId=call.method.description_id,
            entity=entity.ref if entity else None,
            entityName=entity.name if entity else None,
            state="queued",
            cancelled=False,
            cancelable=False,
            reason=vim.TaskReasonUser(userName=call.user),
            queueTime=datetime.now(UTC),
            eventChainId=0,
        )

    @vim_property
    def info(self) -> vim.TaskInfo:
        return self._info

    @property
    def running(self) -> bool:
        return self._info.state in ("queued", "running")

    def CancelTask(self, call: Call) -> None:
        raise vmodl.fault.NotSupported(msg="The lab's tasks cannot be cancelled.")

    def update(self, **fields: object) -> None:
        with self.service.changes.lock:
            info = copy.copy(self._info)  # whoever reads the old one outside the lock keeps it whole
            for name, value in fields.items():
                setattr(info, name, value)
            self._info = info
            touched = (self.moref, self.entity.moref) if self.entity else (self.moref,)
            self.service.changes.touch(*touched)


class Tasks:
    """Starts tasks and remembers them until the server stops. task_s: seconds that each takes besides its work."""

    def __init__(self, service: Service, task_s: float) -> None:
        self._service = service
        self._task_s = task_s
        self._numbers = itertools.count(1)
        self._tasks: dict[str, Task] = {}
        self._forgotten: list[Task] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def find(self, moref: str) -> Task | None:
        return self._tasks.get(moref)

    def of(self, entity: Entity) -> list[Task]:
        return [task for task in self._tasks.values() if task.entity is entity]

    def forget(self) -> None:
        """A restarted vCenter knows none of its tasks; the hosts go on with them, and refuse what collides."""
        with self._service.changes.lock:
            self._forgotten = [task for task in [*self._forgotten, *self._tasks.values()] if task.running]
            self._tasks.clear()

    @property
    def idle(self) -> bool:
        """Whether no task is at work, known or forgotten."""
        return not any(task.running for task in [*self._forgotten, *self._tasks.values()])

    def at_work_on(self, moref: str) -> vim.Task | None:
        """A task that lets no other one work on that entity now."""
        for task in [*self._tasks.values(), *self._forgotten]:
            if task.running and task.exclusive and task.entity is not None and task.entity.moref == moref:
                return vim.Task(task.moref)
        return None

    def start(self, call: Call, entity: Entity | None, work: Work, *, exclusive: bool = False) -> vim.Task:
        """Run `work` as a task; what it returns is the task's result, a vim fault it raises its error.

        Raises TaskInProgress when `exclusive` and such a task already runs on `entity`.
        """
        with self._service.changes.lock:
            if exclusive and entity is not None:
                other = self.at_work_on(entity.moref)
                if other is not None:
                    raise vim.fault.TaskInProgress(
                        task=other, msg=f"Another task is already in progress on {entity.name}."
                    )
            task = Task(self._service, f"task-{next(self._numbers)}", call, entity, exclusive)
            self._tasks[task.moref] = task
            task.update()
            thread = threading.Thread(target=self._run, args=(task, call, work), name=task.moref)
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()
        return vim.Task(task.moref)

    def stop(self) -> None:
        """Let running tasks finish without their waiting times."""
        self._stopping.set()
        self._service.injections.let_go()
        for thread in self._threads:
            thread.join()

    def _run(self, task: Task, call: Call, work: Work) -> None:
        self._stopping.wait(self._task_s * _QUEUED)
        task.update(state="running", startTime=datetime.now(UTC), progress=0)
        self._stopping.wait(self._task_s * _BEFORE)
        task.update(progress=50)
        try:
            later = self._service.injections.before_task_work(call.method.name)
            result = work()
            self._service.injections.happen(later)
        except vmodl.MethodFault as fault:
            task.update(state="error", error=fault, completeTime=datetime.now(UTC))
        except Exception as error:
            _log.exception("%s failed", call.method.name)
            task.update(state="error", error=system_error(error), completeTime=datetime.now(UTC))
        else:
            self._stopping.wait(self._task_s * _AFTER)
            task.update(state="success", result=result, progress=100, completeTime=datetime.now(UTC))
