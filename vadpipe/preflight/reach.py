"""Whether this machine reaches the hosts: name resolution and ports, as facts. Nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import trio

from .facts import HostFacts
from .rules_site import HTTPS, NFC

_TIMEOUT_S = 5.0  # a firewall that drops packets never answers
_AT_ONCE = 32


async def probe(
    hosts: Iterable[HostFacts], *, ports: Sequence[int] = (HTTPS, NFC), timeout_s: float = _TIMEOUT_S
) -> list[HostFacts]:
    """The hosts with what was found out of their names and ports; several are tried at once. Raises nothing."""
    found: dict[str, HostFacts] = {}
    limiter = trio.CapacityLimiter(_AT_ONCE)
    asked = list(hosts)

    async def one(host: HostFacts) -> None:
        async with limiter:
            found[host.moref] = await _probe(host, ports, timeout_s)

    async with trio.open_nursery() as nursery:
        for host in asked:
            nursery.start_soon(one, host)
    return [found[host.moref] for host in asked]


async def _probe(host: HostFacts, ports: Sequence[int], timeout_s: float) -> HostFacts:
    unresolved = await _unresolved(host.name, timeout_s)
    if unresolved:
        return replace(host, unresolved=unresolved)
    return replace(
        host, unresolved="", closed_ports={port: await _closed(host.name, port, timeout_s) for port in ports}
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
