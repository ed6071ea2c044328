"""Disks that a job leaves out on purpose, chosen by key, label or pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from pipeline.errors import ConfigError


class Named(Protocol):
    """A disk as a configuration names it."""

    @property
    def key(self) -> str: ...

    @property
    def label(self) -> str: ...


def expect_patterns(exclude: Sequence[str]) -> None:
    """Raise ConfigError unless `exclude` is a list of texts."""
    if isinstance(exclude, str) or not all(isinstance(pattern, str) for pattern in exclude):
        raise ConfigError(
            f"exclude={exclude!r} is not a list of disks.",
            remedy='Write for example exclude=["scsi0:1"].',
        )


def excluded_keys(disks: Iterable[Named], exclude: Sequence[str], vm: str) -> frozenset[str]:
    """The keys of the disks whose key or label is one of `exclude`, or matches one as a glob pattern.

    Raises:
        ConfigError: A pattern matches no disk, or no disk would be left.
    """
    every = list(disks)
    keys: set[str] = set()
    for pattern in exclude:
        found = matching_keys(every, pattern)
        if not found:
            raise ConfigError(
                f"exclude names the disk {pattern!r}, which {vm} does not have.",
                remedy=f"Its disks are {_listed(every)}.",
                vm=vm,
            )
        keys |= found
    if every and len(keys) == len({disk.key for disk in every}):
        raise ConfigError(
            f"exclude leaves out every disk of {vm}.",
            remedy=f"Its disks are {_listed(every)}; leave at least one of them in.",
            vm=vm,
        )
    return frozenset(keys)


def matching_keys(disks: Iterable[Named], pattern: str) -> frozenset[str]:
    """The keys of the disks whose key or label is `pattern`, or matches it as a glob pattern."""
    return frozenset(disk.key for disk in disks if _matches(disk, pattern))


def left_out_on_purpose(disk: Named) -> str:
    """A sentence for the report."""
    return f"{disk.label} ({disk.key}) is left out: the configuration excludes it."


def _matches(disk: Named, pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in (disk.key, disk.label))


def _listed(disks: Sequence[Named]) -> str:
    return ", ".join(f"{disk.key} ({disk.label})" for disk in disks)
