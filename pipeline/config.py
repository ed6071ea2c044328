"""Jobs from a Python file: a module with the name `job` or `jobs`.

The file is executed, nothing more: making jobs does no I/O. Every mistake in it ends in one message with file
and line.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, MoverError
from .job import Job


def load_jobs(path: Path, only: str | None = None) -> Sequence[Job[Any, Any]]:
    """The jobs of a configuration file, or the one of that title. Raises ConfigError."""
    module = _execute(path)
    found = getattr(module, "jobs", None)
    if found is None:
        found = [module.job] if hasattr(module, "job") else None
    if found is None:
        raise ConfigError(
            f"{path} defines neither `job` nor `jobs`.", remedy="Assign a pipeline.Job to the name `job`."
        )
    jobs = list(found) if isinstance(found, list | tuple) else [found]
    for job in jobs:
        if not isinstance(job, Job):
            raise ConfigError(f"{path}: `jobs` holds {job!r}, which is not a pipeline.Job.")
    titles = [job.title for job in jobs]
    for title in titles:
        if titles.count(title) > 1:
            raise ConfigError(f"{path}: two jobs are called {title}.", remedy="Give them a name=.")
    if only is not None:
        jobs = [job for job in jobs if job.title == only]
        if not jobs:
            raise ConfigError(f"{path} has no job {only}; it has {', '.join(titles)}.")
    return jobs


def _execute(path: Path) -> object:
    spec = importlib.util.spec_from_file_location("vadpipe_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file.", remedy="Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as exc:
        if Path(str(exc.filename)) == path:
            raise ConfigError(f"There is no configuration file {path}.") from None
        raise _located(path, exc) from exc
    except SyntaxError as exc:
        raise ConfigError(f"{exc.filename}, line {exc.lineno}: {exc.msg}.", remedy=_quoted(exc.text)) from exc
    except Exception as exc:
        raise _located(path, exc) from exc
    return module


def _located(path: Path, exc: Exception) -> ConfigError:
    """The error with the last line of the configuration that led to it."""
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == str(path)]
    where = f"{path}, line {frames[-1].lineno}" if frames else str(path)
    if isinstance(exc, MoverError):
        return ConfigError(f"{where}: {exc.problem}", remedy=exc.remedy)
    return ConfigError(
        f"{where}: {type(exc).__name__}: {exc}.", remedy=_quoted(frames[-1].line if frames else None)
    )


def _quoted(line: str | None) -> str:
    return f"The line is: {line.strip()}" if line and line.strip() else ""
