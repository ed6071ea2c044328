"""From what a person writes to a backend: a path, or `s3://bucket/prefix?endpoint=...`, with all that it needs.

Around the bucket lie, from the inside: another attempt for what failed for a passing reason, a limit of bytes per
second where one is asked for, and copies of the index on the local disk.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from pipeline import ConfigError
from pipeline.units import UNITS

from .cached import Cached
from .contract import Backend
from .local import LocalBackend
from .s3_location import S3Location
from .wrappers import Retrying, Throttled

log = logging.getLogger(__name__)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RATE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KiB|MiB|GiB|TiB)(?:/s)?")
_NO_CACHE: Final = "none"


def backend_at(place: str | Path, throttle: str | float | None = None) -> Backend:
    """The backend of a place. Nothing is contacted.

    Args:
        place: A path, or `s3://bucket/prefix` with the options of `S3Location.parse`, and `cache=DIR` or
            `cache=none`, and `throttle=50MiB`.
        throttle: Bytes per second, written and read together: `"50MiB"` or a number. It goes before the URL's.

    Raises:
        ConfigError: No backend has this scheme, the URL is wrong, or a library is missing.
    """
    found = None if isinstance(place, Path) else _SCHEME.match(place)
    if found is None:
        if not str(place):
            raise ConfigError(
                "The place of a repository is empty.", remedy="Name a directory or s3://bucket/prefix."
            )
        return _throttled(LocalBackend(Path(place)), throttle)
    scheme = found.group(1).lower()
    if scheme == "s3":
        return _s3(str(place), throttle)
    raise ConfigError(
        f"No repository can lie at {scheme}://.",
        remedy="Name a directory, or s3://bucket/prefix for an S3 server.",
    )


def is_remote(place: str | Path) -> bool:
    """Whether a place is a bucket: what is written to it stays in memory until it is sent."""
    return not isinstance(place, Path) and _SCHEME.match(place) is not None


def bucket_location(url: str) -> S3Location:
    """The bucket that a URL names, whatever lies around it. Raises ConfigError."""
    return S3Location.parse(_options(url)[0])


def bytes_per_second(rate: str | float) -> float:
    """`50MiB` or a number. Raises ConfigError."""
    if isinstance(rate, str):
        found = _RATE.fullmatch(rate.strip())
        amount = float(found[1]) * UNITS[found[2]] if found else 0.0
    else:
        amount = float(rate)
    if not amount >= 1:
        raise ConfigError(
            f"{rate!r} is no limit of bytes per second.",
            remedy='Write throttle="50MiB", or a number of bytes.',
        )
    return amount


def cache_directory(location: S3Location) -> Path | None:
    """Where copies of the index of a repository lie: below `$XDG_CACHE_HOME/vadpipe` or `~/.cache/vadpipe`.

    None where this user has neither.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():
        root = Path(configured)
    else:
        try:
            home = Path.home()
        except RuntimeError:
            return None
        if not home.is_dir():
            return None
        root = home / ".cache"
    which = f"{location.endpoint_url()} {location.bucket} {location.prefix}"
    return root / "vadpipe" / blake2b(which.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Around:
    """The options of a URL that say what lies around the bucket."""

    cache: str = ""
    throttle: str = ""


def _s3(url: str, throttle: str | float | None) -> Backend:
    url, around = _options(url)
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
    rate = around.throttle if throttle is None else throttle
    backend = _throttled(Retrying(S3Backend(location)), rate)
    if around.cache == _NO_CACHE:
        return backend
    directory = Path(around.cache) if around.cache else cache_directory(location)
    if directory is None:
        log.info("no copies of the index are kept: this user has neither HOME nor XDG_CACHE_HOME")
        return backend
    return Cached(backend, directory)


def _options(url: str) -> tuple[str, _Around]:
    """The URL without the options that are not about the bucket, and these. Raises ConfigError."""
    before, mark, query = url.partition("?")
    left, found = [], dict[str, str]()
    for option in query.split("&"):
        name, _, value = option.partition("=")
        if name not in ("cache", "throttle"):
            left.append(option)
            continue
        value = unquote(value.replace("+", " "))
        if name in found or not value:
            raise ConfigError(
                f"The URL of the repository is wrong. The option {name} is empty or given twice.",
                remedy="Write cache=DIR or cache=none, and throttle=50MiB.",
            )
        found[name] = value
    if found.get("throttle"):
        bytes_per_second(found["throttle"])
    cache = found.get("cache", "")
    if cache not in ("", _NO_CACHE) and not Path(cache).is_absolute():
        raise ConfigError(
            f"The URL of the repository is wrong. The option cache names {cache!r}, which is no absolute path.",
            remedy="Write cache=/var/cache/vadpipe, or cache=none.",
        )
    query = "&".join(left)
    return f"{before}{mark if query else ''}{query}", _Around(cache, found.get("throttle", ""))


def _throttled(backend: Backend, rate: str | float | None) -> Backend:
    return backend if rate in (None, "") else Throttled(backend, bytes_per_second(rate))
