"""An ESXi host that answers for the files of guests, with a certificate of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...certificate import Certificate, load_or_create
from .https import HttpsServer

if TYPE_CHECKING:
    from ..server import LabVcenter


@contextmanager
def host_door(lab: LabVcenter) -> Iterator[Certificate]:
    """While it is open, guests' files are at a host, and the inventory tells its certificate's thumbprint."""
    guests = lab.guests
    directory = lab.root / "esxi"
    directory.mkdir(exist_ok=True)
    certificate = load_or_create(directory, lab.address)
    server = HttpsServer((lab.address, 0), certificate.server_context(), guests.service)
    thread = threading.Thread(target=server.serve_forever, name="lab-esxi", args=(0.05,))
    thread.start()
    guests.door = f"{lab.address}:{server.server_address[1]}"
    guests.host_thumbprint = certificate.thumbprint_sha1
    try:
        yield certificate
    finally:
        guests.door, guests.host_thumbprint = "*", guests.service.certificate.thumbprint_sha1
        server.stop(guests.service.injections.let_go)
        thread.join()
