"""Jobs from a Python file that assigns to `job` or `jobs`, and the `target` of restores from one.

To read a configuration is to execute the file; making jobs does no I/O. Every mistake in it becomes one message
with file and line. To resolve it is to ask its sources of jobs which jobs there are now.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from pipeline.composition import has_methods, readable
from pipeline.errors import ConfigError, MoverError, are_ours
from pipeline.job import Job, JobSource
from vadpipe.fleet.limits import Limits

from .process import run_async

if TYPE_CHECKING:
    from sinks.in_place import OverVm
    from sinks.restore_job import Restore
    from sinks.restoring import RestoreTarget

_NAMED_IN_AN_ERROR = 10


Entry: TypeAlias = "Job[Any, Any] | JobSource | Restore"
"""What a configuration may have among its jobs."""


@dataclass(frozen=True)
class Resolved:
    """The jobs of a configuration as of now. `failed`: the sources that could not name theirs, by title."""

    jobs: Sequence[Job[Any, Any] | Restore]
    failed: Sequence[tuple[str, Exception]]


def read_config(path: Path, only: str | None = None) -> Sequence[Entry]:
    """What a configuration file assigns to `job` or `jobs`, without any I/O but reading it.

    With `only` the job of that title; where there is none yet, the sources that may give it. Raises ConfigError.
    """
    module = _execute(path)
    found = getattr(module, "jobs", None)
    if found is None:
        found = [module.job] if hasattr(module, "job") else None
    if found is None:
        raise ConfigError(
            f"{path} defines neither `job` nor `jobs`.", remedy="Assign a pipeline.Job to the name `job`."
        )
    if isinstance(found, Iterator):
        raise ConfigError(
            f"{path}: `jobs` is a {type(found).__name__}, which can be read only once.",
            remedy="Make it a list: jobs = [...]",
        )
    entries = list(found) if isinstance(found, list | tuple) else [found]
    if not entries:
        raise ConfigError(f"{path}: `jobs` is empty.", remedy="Put a pipeline.Job into it.")
    for entry in entries:
        if not isinstance(entry, Job | JobSource) and not _is_restore(entry):
            raise ConfigError(
                f"{path} has {readable(entry)} where a pipeline.Job, JobSource or sinks.Restore is expected."
            )
    jobs = [entry for entry in entries if not isinstance(entry, JobSource)]
    _check_titles(path, jobs)
    if only is None:
        return entries
    sources = [entry for entry in entries if isinstance(entry, JobSource)]
    named = [job for job in jobs if job.title == only] or sources
    if not named:
        raise _no_such_job(path, only, jobs)
    return named


def limits_of(path: Path) -> Limits:
    """What a configuration file that was read assigns to `limits`; by default `Limits()`. Raises ConfigError."""
    found = getattr(sys.modules.get(_module_name(path)), "limits", None)
    if found is None:
        return Limits()
    if not isinstance(found, Limits):
        raise ConfigError(
            f"{path}: `limits` is {readable(found)}, which is no Limits.",
            remedy="Assign one to it: limits = Limits(connections=20).",
        )
    return found


def read_target(path: Path) -> RestoreTarget:
    """What a configuration file assigns to `target`; without one, the target of its only restore.

    Raises ConfigError.
    """
    module = _execute(path)
    found = getattr(module, "target", None)
    if found is None:
        listed = getattr(module, "jobs", None)
        jobs = [getattr(module, "job", None)] if listed is None else list(listed)
        targets = [job.target for job in jobs if _is_restore(job)]
        if len(targets) != 1:
            raise ConfigError(
                f"{path} defines no `target`.",
                remedy="Assign one to that name: target = NewVm(vcenter, writer=Vddk(libdir)).",
            )
        [found] = targets
    if not has_methods(found, "open") or isinstance(found, type):
        raise ConfigError(
            f"{path}: `target` is {readable(found)}, which is no target of a restore.",
            remedy="Assign one to it: target = NewVm(vcenter, writer=Vddk(libdir)).",
        )
    target: RestoreTarget = found
    return target


def read_target_in_place(path: Path) -> OverVm:
    """What a configuration file assigns to `in_place`, else its `target` when that writes over VMs.

    Raises ConfigError.
    """
    module = _execute(path)
    found = getattr(module, "in_place", getattr(module, "target", None))
    from sinks.in_place import OverVm

    if not isinstance(found, OverVm):
        raise ConfigError(
            f"{path} does not permit to write over a VM: it has no OverVm.",
            remedy="Assign one: in_place = OverVm(vcenter, writer=Vddk(libdir), allow=True).",
        )
    return found


def _is_restore(entry: object) -> TypeGuard[Restore]:
    """Whether an entry is a restore. A configuration that has one loaded its module; others do without it, and so
    without pyVmomi: half of the start of a small run."""
    loaded = sys.modules.get("sinks.restore_job")
    return loaded is not None and isinstance(entry, loaded.Restore)


def read_jobs_and_target(path: Path) -> Sequence[Entry | RestoreTarget]:
    """The jobs and the `target` of a configuration file, which has at least one of them. Raises ConfigError."""
    module = _execute(path)
    targets: list[RestoreTarget] = [read_target(path)] if hasattr(module, "target") else []
    if hasattr(module, "in_place"):
        targets.append(read_target_in_place(path))
    has_jobs = hasattr(module, "jobs") or hasattr(module, "job")
    return [*targets, *(read_config(path) if has_jobs or not targets else ())]


def load_jobs(path: Path, only: str | None = None) -> Sequence[Job[Any, Any]]:
    """The backups of a configuration file as of now, or the one of that title; not for use inside an event loop.

    Raises ConfigError, and the MoverError of a source that cannot name its jobs.
    """
    resolved = run_async(resolve, path, only)
    if resolved.failed:
        raise _failure(resolved)
    return [job for job in resolved.jobs if isinstance(job, Job)]


async def resolve(path: Path, only: str | None = None, entries: Sequence[Entry] | None = None) -> Resolved:
    """The jobs of a configuration file as of now, or the one of that title. `entries`: what was read of it before.

    A source that fails is listed in the result, and the jobs of the others are there. Raises ConfigError; with
    `only`, when no job has that title, also the failure of the source that may have had it.
    """
    jobs: list[Job[Any, Any] | Restore] = []
    failed: list[tuple[str, Exception]] = []
    for entry in read_config(path) if entries is None else entries:
        if not isinstance(entry, JobSource):
            jobs.append(entry)
            continue
        try:
            jobs += await entry.jobs()
        except Exception as exc:
            if not are_ours(exc):
                raise
            failed.append((entry.title, exc))
    _check_titles(path, jobs)
    resolved = Resolved(jobs, failed)
    return resolved if only is None else _only(path, only, resolved)


def _only(path: Path, title: str, resolved: Resolved) -> Resolved:
    found = [job for job in resolved.jobs if job.title == title]
    if found:
        return Resolved(found, [])
    if resolved.failed:
        raise _failure(resolved)
    raise _no_such_job(path, title, resolved.jobs)


def _check_titles(path: Path, jobs: Sequence[Job[Any, Any] | Restore]) -> None:
    for title, count in Counter(job.title for job in jobs).items():
        if count > 1:
            raise ConfigError(f"{path}: two jobs are called {title}.", remedy="Give them a name=.")


def _no_such_job(path: Path, title: str, jobs: Sequence[Job[Any, Any] | Restore]) -> ConfigError:
    titles = [job.title for job in jobs]
    if len(titles) > _NAMED_IN_AN_ERROR:
        titles = [*difflib.get_close_matches(title, titles, n=_NAMED_IN_AN_ERROR, cutoff=0), "..."]
    return ConfigError(f"{path} has no job {title}; it has {', '.join(titles)}.")


def _failure(resolved: Resolved) -> Exception:
    """The failure of the sources; of several, all at once."""
    failures = [exc for _, exc in resolved.failed]
    return failures[0] if len(failures) == 1 else ExceptionGroup("The jobs are not known.", failures)


def _module_name(path: Path) -> str:
    return f"vadpipe_config:{path.resolve()}"


def _execute(path: Path) -> ModuleType:
    """Execute the file as a module. Modules beside it can be imported, after everything that is installed."""
    place = path.resolve()
    name = _module_name(path)  # registered, because dataclasses look up their module by its name
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file.", remedy="Its name must end in .py.")
    if not place.is_file():
        raise ConfigError(f"There is no configuration file {path}.", remedy="Name an existing file.")
    module = importlib.util.module_from_spec(spec)
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as exc:
        file = path if exc.filename == str(place) else exc.filename
        raise ConfigError(f"{file}, line {exc.lineno}: {exc.msg}.", remedy=_quoted(exc.text)) from exc
    except Exception as exc:
        raise _located(path, exc) from exc
    return module


def _located(path: Path, exc: Exception) -> ConfigError:
    """The error with the last line of the configuration that led to it."""
    place = str(path.resolve())
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == place]
    where = f"{path}, line {frames[-1].lineno}" if frames else str(path)
    if isinstance(exc, MoverError):
        return ConfigError(f"{where}: {exc.problem}", remedy=exc.remedy)
    return ConfigError(
        f"{where}: {type(exc).__name__}: {exc}.", remedy=_quoted(frames[-1].line if frames else None)
    )


def _quoted(line: str | None) -> str:
    return f"The line is: {line.strip()}" if line and line.strip() else ""
