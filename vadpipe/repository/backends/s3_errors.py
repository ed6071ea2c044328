"""What the errors of obstore mean, and what a person can do. The texts of obstore are read here and nowhere else.

They may repeat the answer of the server, which can contain the key or the session token: none of that is passed on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from obstore.exceptions import BaseError

from .s3_location import ENVIRONMENT


@dataclass(frozen=True)
class Trouble:
    """What an error of obstore means.

    Args:
        sent: The request may have reached the server and had its effect.
    """

    problem: str
    remedy: str
    transient: bool = False
    sent: bool = False
    status: int | None = None
    code: str = ""


_RIGHTS: Final = (
    "Check the key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and its rights: to list the bucket, and to get, "
    "put and delete objects."
)
_CLOCK: Final = "Set the clock of this machine: S3 allows 15 minutes of difference."
_LATER: Final = "Run again later. When it stays so, look at the server."
_BUCKETS: Final = "Make the bucket first, or correct its name or the endpoint."
_REGIONS: Final = "Name the region of the bucket: ?region=NAME."

# Codes of S3 that say more than their status. Source: Amazon S3 API Reference, Error responses.
_CODES = {
    "NoSuchBucket": ("the bucket does not exist", _BUCKETS),
    "InvalidBucketName": ("the server takes no bucket of this name", _BUCKETS),
    "InvalidAccessKeyId": ("the server does not know the access key", _RIGHTS),
    "SignatureDoesNotMatch": ("the secret key is wrong", _RIGHTS),
    "AccessDenied": ("access is denied", _RIGHTS),
    "ExpiredToken": ("the credentials have expired", "Get new credentials and run again."),
    "InvalidToken": ("the session token is wrong", "Get new credentials and run again."),
    "TokenRefreshRequired": ("the credentials have expired", "Get new credentials and run again."),
    "RequestTimeTooSkewed": ("the clocks of this machine and the server differ", _CLOCK),
    "AuthorizationHeaderMalformed": ("the region is wrong", _REGIONS),
    "PermanentRedirect": ("the bucket is in another region", _REGIONS),
    "QuotaExceeded": ("the quota is used up", "Raise the quota, or free space, and run again."),
    "EntityTooLarge": (
        "the object is too large for the server",
        "Raise the limit of the server for one request.",
    ),
    "SlowDown": ("the server is overloaded and asks for fewer requests", _LATER),
    "InvalidObjectState": ("the object is archived", "Keep a repository in a class that is read at once."),
}


def trouble(exc: Exception) -> Trouble:
    """What an error means that obstore raised."""
    text = str(exc)
    if isinstance(exc, ValueError) and not isinstance(exc, BaseError):
        return Trouble("obstore refused the request", "Report this as a defect.")
    if re.search(r"169\.254\.|/latest/(api|meta-data)", text):  # the last place where obstore looks
        return Trouble("there are no credentials for the server", ENVIRONMENT)
    status = int(found.group(1)) if (found := re.search(r"status code: (\d{3})", text)) else None
    code = found.group(1) if (found := re.search(r"<Code>(\w{1,64})</Code>", text)) else ""
    if status is not None or code:
        return _answered(status, code)
    if "BareRedirect" in text:
        return Trouble("the bucket is in another region", _REGIONS)
    if "BadScheme" in text:
        return Trouble("it would go without TLS", "Use an endpoint with https://, or add allow_http=yes.")
    if "CaUsedAsEndEntity" in text:
        return Trouble(
            "the server shows the certificate of an authority as its own",
            "Give it a certificate by that authority (CA:FALSE), and name the authority's PEM file with ?ca=FILE.",
        )
    if "ertificate" in text and "onnect" in text:
        return Trouble(
            "the certificate of the server is not trusted",
            "Name the PEM file of its authority with ?ca=FILE, or check that the certificate has the host's name.",
        )
    if "InvalidContentType" in text:
        return Trouble(
            "the server does not speak TLS", "Check the endpoint: it has the wrong port, or is http://."
        )
    if "dns error" in text:
        return Trouble("its host has no address", "Check the endpoint and the name server.", transient=True)
    if "ConnectionRefused" in text:
        return Trouble("nobody listens there", "Start the server, or correct the endpoint.", transient=True)
    if "kind: Connect" in text:
        return Trouble("the server cannot be reached", "Check the endpoint and the network.", transient=True)
    if "kind: Timeout" in text or "TimedOut" in text:
        return Trouble("the server did not answer in time", _LATER, transient=True, sent=True)
    if "kind: Request" in text or "HttpError" in text or "Http(" in text:
        return Trouble("the connection was lost", _LATER, transient=True, sent=True)
    return Trouble(first_line(exc), "Check the server and its log, then run again.", sent=True)


def asks_for_checksum(exc: Exception) -> bool:
    """Whether the server wants a checksum with each object, as where object lock has a default retention."""
    text = str(exc)
    return "status code: 400" in text and "<Code>" in text and ("Content-MD5" in text or "hecksum" in text)


def _answered(status: int | None, code: str) -> Trouble:
    """An answer of the server with an error."""
    said = " ".join(part for part in (f"HTTP {status}" if status else "", code) if part)
    transient = status in (408, 409, 429, 500, 502, 503, 504) or code in ("SlowDown", "RequestTimeout")
    sent = status is None or status in (408, 500, 502, 503, 504)
    if code in _CODES:
        problem, remedy = _CODES[code]
    elif status in (401, 403):
        problem, remedy = "access is denied", _RIGHTS
    elif status == 404:
        problem, remedy = "it does not exist", _BUCKETS
    elif status == 507:
        problem, remedy = "the server is full", "Free space there, and run again."
    elif status == 501:
        problem, remedy = (
            "the server does not know this request",
            "Use another server, or conditional=no in the URL.",
        )
    elif status in (429, 503):
        problem, remedy = "the server is overloaded or down", _LATER
    elif transient:
        problem, remedy = "the server failed", _LATER
    else:
        problem, remedy = "the server refused it", "Look at the log of the server."
    return Trouble(f"{problem} ({said})", remedy, transient, sent, status, code)


def first_line(exc: Exception) -> str:
    """An error of obstore without what it says for debugging, and without the address, which may have a query."""
    return re.sub(r"\S*://\S*", "the server", str(exc).partition("\n")[0]).rstrip(". ")
