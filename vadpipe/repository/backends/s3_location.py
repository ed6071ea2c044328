"""The URL of a repository in an S3 server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pipeline import ConfigError

from .contract import checked_prefix

ENVIRONMENT: Final = "Give credentials in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."

_OPTIONS: Final = "The options are endpoint, region, ca, allow_http, conditional, cache and throttle."
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_TRUE, _FALSE = ("yes", "true", "1"), ("no", "false", "0")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True)
class S3Location:
    """Where a repository lies in an S3 server, and how to reach it.

    Args:
        bucket: Its name.
        prefix: What the keys of all objects begin with, without slashes at its ends; "": the whole bucket.
        endpoint: The server, e.g. `https://s3.example.com:9000`. "": what `AWS_ENDPOINT_URL_S3` or
            `AWS_ENDPOINT_URL` says, otherwise AWS.
        region: "": what `AWS_REGION` says, otherwise `us-east-1`.
        ca: A PEM file with the certificates of a private authority.
        allow_http: Whether data may go to another host than this one without TLS.
        conditional: Whether the server keeps the promise that a name is taken once.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    ca: Path | None = None
    allow_http: bool = False
    conditional: bool = True

    @classmethod
    def parse(cls, url: str) -> S3Location:
        """Read `s3://bucket/prefix?endpoint=URL&region=NAME&ca=FILE&allow_http=yes&conditional=no`.

        Raises:
            ConfigError: It is no such URL, or it contains credentials. The message does not repeat these.
        """
        try:
            parts = urlsplit(url)
            options = (
                parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
            )
        except ValueError:
            raise _wrong("It is no URL.") from None
        if "@" in parts.netloc:
            raise _wrong("It contains a user or a key.", ENVIRONMENT)
        if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
            raise _wrong("It is not of the form s3://bucket/prefix.")
        prefix = unquote(parts.path).strip("/")
        try:
            if prefix:
                checked_prefix(prefix + "/")
        except ValueError:
            raise _wrong(
                "The prefix consists of parts of letters, digits and _.-~%, joined by '/'."
            ) from None
        found: dict[str, str] = {}
        for name, value in options:
            if name not in ("endpoint", "region", "ca", "allow_http", "conditional"):
                remedy = ENVIRONMENT if re.search("key|secret|token|password", name, re.I) else _OPTIONS
                raise _wrong("It has an option that is not known.", remedy)
            if name in found or not value:
                raise _wrong(f"The option {name} is empty or given twice.", _OPTIONS)
            found[name] = value
        return cls(
            parts.netloc,
            prefix,
            found.get("endpoint", ""),
            found.get("region", ""),
            Path(found["ca"]) if "ca" in found else None,
            _truth("allow_http", found.get("allow_http", "no")),
            _truth("conditional", found.get("conditional", "yes")),
        )

    def endpoint_url(self) -> str:
        """The endpoint, of the location or of the environment; "": AWS.

        Raises:
            ConfigError: It is no URL, contains credentials, or leads to another host without TLS.
        """
        endpoint = self.endpoint or next(
            (os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), ""
        )
        if not endpoint:
            return ""
        try:
            parts = urlsplit(endpoint)
            host = parts.hostname
            _ = parts.port
        except ValueError:
            raise _wrong("Its endpoint is no URL.") from None
        if "@" in parts.netloc:
            raise _wrong("Its endpoint contains a user or a key.", ENVIRONMENT)
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise _wrong("Its endpoint is not of the form https://host:port.")
        local = host in ("localhost", "::1") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None
        if parts.scheme == "http" and not local and not self.allow_http:
            raise _wrong(
                "Its endpoint is without TLS and on another host.",
                "Use https://. Where the network between is trusted, add allow_http=yes.",
            )
        return endpoint.rstrip("/")

    def __str__(self) -> str:
        """The URL from which `parse` makes the same location."""
        options = {
            "endpoint": self.endpoint,
            "region": self.region,
            "ca": str(self.ca or ""),
            "allow_http": "yes" if self.allow_http else "",
            "conditional": "" if self.conditional else "no",
        }
        query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in options.items() if value)
        return f"{self.place()}?{query}" if query else self.place()

    def place(self, name: str = "") -> str:
        """The bucket, prefix and name of an object, without options."""
        return "/".join(part for part in (f"s3://{self.bucket}", quote(self.prefix, safe="/~"), name) if part)


def _truth(option: str, value: str) -> bool:
    if value.lower() not in (*_TRUE, *_FALSE):
        raise _wrong(f"The option {option} is yes or no.")
    return value.lower() in _TRUE


def _wrong(problem: str, remedy: str = "Write s3://bucket/prefix?endpoint=https://host:port.") -> ConfigError:
    return ConfigError(f"The URL of the repository is wrong. {problem}", remedy=remedy)
