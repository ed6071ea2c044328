"""This machine: whether it is virtual, which VM it is, and which hosts it reaches. Nothing is sent to a port."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import trio
from pyVmomi import vim

from vadpipe.vsphere.api.session import VcenterSession

from .facts import HostFacts
from .rules_site import HTTPS, NFC

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0  # a firewall that drops packets never answers
_AT_ONCE = 32
_FIRMWARE = Path("/sys/class/dmi/id")
_VMWARE = "vmware"
# Vendors' names that firmware shows on other hypervisors (their SMBIOS documentation).
_OTHER_HYPERVISORS = ("qemu", "microsoft corporation", "xen", "innotek", "amazon ec2", "google", "parallels")


async def probe(
    hosts: Iterable[HostFacts], *, ports: Sequence[int] = (HTTPS, NFC), timeout_s: float = _TIMEOUT_S
) -> list[HostFacts]:
    """The hosts with the state of their names and ports. Several are tried at once; raises nothing.

    Args:
        hosts: Hosts as they were gathered.
        ports: TCP ports to connect to.
        timeout_s: For each name and each port.
    """
    found: dict[str, HostFacts] = {}
    limiter = trio.CapacityLimiter(_AT_ONCE)
    asked = list(hosts)

    async def one(host: HostFacts) -> None:
        async with limiter:
            begun = trio.current_time()
            found[host.moref] = result = await _probe(host, ports, timeout_s)
            log.debug(
                "probed %s in %.2f s: %s",
                host.reached_at,
                trio.current_time() - begun,
                result.unresolved or result.closed_ports,
            )

    async with trio.open_nursery() as nursery:
        for host in asked:
            nursery.start_soon(one, host)
    return [found[host.moref] for host in asked]


async def _probe(host: HostFacts, ports: Sequence[int], timeout_s: float) -> HostFacts:
    unresolved = await _unresolved(host.reached_at, timeout_s)
    if unresolved:
        return replace(host, unresolved=unresolved)
    return replace(
        host,
        unresolved="",
        closed_ports={port: await _closed(host.reached_at, port, timeout_s) for port in ports},
    )


async def _unresolved(name: str, timeout_s: float) -> str:
    with trio.move_on_after(timeout_s) as scope:
        try:
            await trio.socket.getaddrinfo(name, None)
        except OSError as exc:
            return f"its name has no address: {exc.strerror or exc}"
    return f"its name was not resolved within {timeout_s:g} s" if scope.cancelled_caught else ""


async def _closed(name: str, port: int, timeout_s: float) -> str:
    with trio.move_on_after(timeout_s) as scope:
        try:
            stream = await trio.open_tcp_stream(name, port)
        except OSError as exc:
            cause = exc.__cause__
            reasons = [str(one) for one in cause.exceptions] if isinstance(cause, BaseExceptionGroup) else []
            return "; ".join(reasons) or str(cause or exc)
        await trio.aclose_forcefully(stream)
    return f"no answer within {timeout_s:g} s" if scope.cancelled_caught else ""


async def this_machine(session: VcenterSession, firmware: Path = _FIRMWARE) -> tuple[bool | None, str | None]:
    """(whether this machine is virtual, its moref on this server).

    The first is None where it is not known, the second where this machine is no VM of the server.
    """
    vendor, own_uuid = await trio.to_thread.run_sync(_identity, firmware)
    if vendor is None:
        return None, None
    if _VMWARE not in vendor:
        return any(name in vendor for name in _OTHER_HYPERVISORS), None
    index = session.content.searchIndex
    if own_uuid is None or index is None:
        return True, None

    def find() -> vim.ManagedEntity | None:
        # Newer firmware gives the first three fields in the other byte order.
        forms = (str(own_uuid), str(uuid.UUID(bytes=own_uuid.bytes_le)))
        found = (index.FindByUuid(None, form, True, False) for form in forms)
        return next((one for one in found if one is not None), None)

    vm = await session.call("FindByUuid", find)
    return True, None if vm is None else str(vm._moId)


def _identity(firmware: Path) -> tuple[str | None, uuid.UUID | None]:
    """The vendor in lower case, and the machine's UUID, which only root may read."""
    vendor = _first_line(firmware / "sys_vendor")
    try:
        own_uuid = uuid.UUID(_first_line(firmware / "product_uuid") or "")
    except ValueError:
        own_uuid = None
    return vendor.lower() if vendor else None, own_uuid


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
