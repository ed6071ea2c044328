"""Datastore paths, `[datastore] directory/file`, and their address under a server's `/folder`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

_SHAPE = re.compile(r"\[(?P<datastore>.+?)\](?: (?P<path>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A file or directory on a datastore. `path` has no slash at either end; empty is the root."""

    datastore: str
    path: str

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}" if self.path else f"[{self.datastore}]"

    @classmethod
    def parse(cls, text: str) -> DatastorePath:
        """From `[ds] dir/file`, with or without trailing slash. ValueError for anything else."""
        shape = _SHAPE.fullmatch(text)
        if shape is None:
            raise ValueError(f"not a datastore path: {text!r}. Expected '[datastore] directory/file'")
        return cls(shape["datastore"], _tidy(shape["path"] or "", text))

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> DatastorePath:
        return DatastorePath(self.datastore, self.path.rpartition("/")[0])

    def join(self, relative: str) -> DatastorePath:
        """A path below this directory. ValueError when it would leave it."""
        below = _tidy(relative, relative)
        return DatastorePath(self.datastore, f"{self.path}/{below}" if self.path else below)


def _tidy(path: str, text: str) -> str:
    segments = [segment for segment in path.split("/") if segment]
    if "." in segments or ".." in segments:
        raise ValueError(f"datastore path with relative segments: {text!r}. Name the directory itself")
    return "/".join(segments)


def folder_url(server: str, path: DatastorePath | str, datacenter_path: str | None) -> str:
    """The URL of a datastore file for GET, HEAD and PUT.

    `server` is a host, or host:port; an IPv6 address stands in brackets. `datacenter_path` is the
    inventory path with folders, as in `Folder/DC`; None directly at an ESXi host, which has one datacenter.
    Raises ValueError for a text that is no datastore path. Source: vSphere, Datastore HTTPS access.
    """
    place = DatastorePath.parse(path) if isinstance(path, str) else path
    segments = "/".join(quote(segment, safe="") for segment in place.path.split("/"))
    query = {"dsName": place.datastore}
    if datacenter_path is not None:
        query = {"dcPath": datacenter_path.strip("/"), **query}
    return f"https://{server}/folder/{segments}?{urlencode(query, quote_via=quote, safe='')}"
