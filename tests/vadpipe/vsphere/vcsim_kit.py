"""govmomi's simulator: a second opinion from a codec that is not pyVmomi's.

Needs the environment variable VCSIM to name a `vcsim` binary.
"""

import hashlib
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.secrets import Secret
from vadpipe.vsphere.api.session import Vcenter

NEEDS_VCSIM = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("VCSIM"), reason="the environment variable VCSIM names no vcsim binary"
    ),
]


@contextmanager
def running_vcsim(*options: str) -> Iterator[Vcenter]:
    """A simulator with these options besides the usual; how to log in there."""
    where = ["-l", "127.0.0.1:0", "-stdinexit", "-username", "user", "-password", "pass"]
    command = [os.environ["VCSIM"], *where, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, line
        port = int(found[1])
        pem = ssl.get_server_certificate(("127.0.0.1", port))
        thumbprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        yield Vcenter("127.0.0.1", "user", Secret.from_text("pass"), thumbprint=thumbprint, port=port)
        process.communicate()  # the end of its input ends it


@pytest.fixture
def vcsim() -> Iterator[Vcenter]:
    with running_vcsim() as settings:
        yield settings
