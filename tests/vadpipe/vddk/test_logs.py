"""Logs: what is told at which level, and that no secret is in them or in errors."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.buffers import BufferPool
from pipeline.secrets import Secret
from tests.vadpipe.reading_kit import whole_disk
from tests.vadpipe.vddk.conftest import COOKIE, PASSWORD, Lab, quick
from vadpipe.vddk.client import PROGRAM, Redaction
from vadpipe.vddk.errors import VddkError

TICKET = "52f1a9b3-88d7-cafe"


def lines(caplog: pytest.LogCaptureFixture, level: int, logger: str = "vadpipe.vddk") -> list[str]:
    found = [record for record in caplog.records if record.levelno == level]
    return [record.getMessage() for record in found if record.name.startswith(logger)]


async def test_an_open_disk_and_its_end_are_logged(libdir, lab, pool, caplog):
    caplog.set_level(logging.DEBUG, logger="vadpipe")
    async with quick(libdir, transports="nbdssl").open(lab.access(), pool) as disk:
        await whole_disk(disk, pool)
    info = "\n".join(lines(caplog, logging.INFO))
    assert re.search(
        r"grandchild\.vmdk is open over nbdssl: \d+ bytes, \d+\.\d\d s, .*libvixDiskLib\.so\.9", info
    )
    debug = "\n".join(lines(caplog, logging.DEBUG))
    assert re.search(r"connecting and opening took \d", debug)
    assert re.search(r"VDDK ReadAsync of .*: \d+ calls, \d+\.\d+ s in total", debug)
    assert len(re.findall("ReadAsync", debug)) == 1  # not a line for each read
    assert lines(caplog, logging.WARNING) == []


async def test_lines_of_the_library_are_logged_with_known_noise_at_debug(
    libdir, lab, pool, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG, logger="vadpipe")
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "open:1:4")
    with pytest.raises(VddkError):
        async with quick(libdir).open(lab.access(thumbprint=""), pool):
            pytest.fail("it is not open")
    library = "vadpipe.vddk.library"
    assert any("VDDK_PhoneHome" in line for line in lines(caplog, logging.DEBUG, library))
    assert any("stand-in, libDir" in line for line in lines(caplog, logging.DEBUG, library))
    assert not any("PhoneHome" in line for line in lines(caplog, logging.WARNING, library))


@pytest.mark.slow
async def test_a_lost_child_and_its_replacement_are_logged_with_the_reason(
    libdir: Path, lab: Lab, pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="vadpipe")
    monkeypatch.setenv("VADPIPE_VDDK_FAULT", "read:3:14011")
    monkeypatch.setenv("VADPIPE_VDDK_ONCE", str(tmp_path))
    async with quick(libdir).open(lab.access(), pool) as disk:
        assert np.array_equal(await whole_disk(disk, pool), lab.chains["grandchild"].raw)
    info = lines(caplog, logging.INFO)
    assert any("is made anew in 0.0 s (failure 1, at most 3" in line and "14011" in line for line in info)
    assert sum("is open over" in line for line in info) == 2


async def test_unknown_allocation_is_logged(libdir, lab, pool, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="vadpipe")
    monkeypatch.setenv("VADPIPE_VDDK_QAB", "unsupported")
    async with quick(libdir).open(lab.access(), pool):
        pass
    assert any("so all of it is read" in line for line in lines(caplog, logging.INFO))
    assert lines(caplog, logging.WARNING) == []  # the probe's own complaint is expected


@pytest.mark.parametrize("login", ["password", "cookie"])
async def test_a_login_that_the_library_prints_is_in_no_log_and_no_error(
    libdir: Path, lab: Lab, pool: BufferPool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, login: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("VADPIPE_VDDK_LEAK", "1")
    monkeypatch.setenv("VADPIPE_VDDK_CRASH", "open:1")
    cookie = {"password": None, "cookie": Secret.from_text(COOKIE)} if login == "cookie" else {}
    with pytest.raises(VddkError) as caught:
        async with quick(libdir, restarts=0).open(lab.access(**cookie), pool):
            pytest.fail("it is not open")
    told = f"{caught.value} {caught.value.facts} {caplog.text}"
    assert told.count("connecting as backup with '***'") >= 4  # both streams, in the log and in the facts
    for secret in (PASSWORD, COOKIE, TICKET):
        assert secret not in told


def test_every_printed_form_of_a_secret_is_removed():
    order = {
        "password": 'p@ss "word" <1>',
        "cookie": "vmware_soap_session=52b5f3a9-0000-cafe; Path=/; HttpOnly",
    }
    redact = Redaction(order)
    for text in (
        'login p@ss "word" <1>',
        "login p%40ss%20%22word%22%20%3C1%3E",
        "login p@ss &quot;word&quot; &lt;1&gt;",
        "session 52b5f3a9-0000-cafe is used",
    ):
        assert "***" in redact(text)
        assert not re.search(r"word|cafe", redact(text))
    assert redact("ticket: 52 a1, sessionId='ab12cd34ef', password=hunter22") == (
        "ticket: 52 a1, sessionId='***', password=***"
    )
    assert redact("Ticket = 52 f1 a9 b3 88 d7-ca fe ok") == "Ticket = *** ok"
    assert redact("The ticket expired after 30 s.") == "The ticket expired after 30 s."


def test_a_short_secret_is_removed_where_it_stands_alone():
    redact = Redaction({"password": "cat", "cookie": ""})
    assert redact("login with 'cat' as concat: cat") == "login with '***' as concat: ***"


def test_the_child_cannot_dump_core():
    script = "import child_log, resource; child_log.forbid_core_dumps(); "
    script += "print(child_log.libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); {script}"]
    assert subprocess.check_output(command, text=True) == "0 (0, 0)\n"
