"""From what a person writes to a backend: a path, or `s3://bucket/prefix?endpoint=...`."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline import ConfigError

from .contract import Backend
from .local import LocalBackend
from .s3_location import S3Location
from .wrappers import Retrying

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def backend_at(place: str | Path) -> Backend:
    """The backend of a place. Nothing is contacted.

    Args:
        place: A path, or `s3://bucket/prefix` with the options of `S3Location.parse`.

    Raises:
        ConfigError: No backend has this scheme, the URL is wrong, or a library is missing.
    """
    if isinstance(place, Path):
        return LocalBackend(place)
    found = _SCHEME.match(place)
    if found is None:
        if not place:
            raise ConfigError(
                "The place of a repository is empty.", remedy="Name a directory or s3://bucket/prefix."
            )
        return LocalBackend(Path(place))
    scheme = found.group(1).lower()
    if scheme == "s3":
        return _s3(place)
    raise ConfigError(
        f"No repository can lie at {scheme}://.",
        remedy="Name a directory, or s3://bucket/prefix for an S3 server.",
    )


def _s3(url: str) -> Backend:
    location = S3Location.parse(url)
    try:
        from .s3 import S3Backend  # obstore is an extra, and takes its time to load
    except ImportError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "obstore":
            raise
        raise ConfigError(
            "A repository in S3 needs the library obstore, and it is not installed.",
            remedy="Install it with: pip install 'vadpipe[s3]'",
        ) from exc
    return Retrying(S3Backend(location))
