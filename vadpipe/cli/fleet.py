"""The commands of a fleet: simulate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.errors import ConfigError
from vadpipe.fleet.scheduler import Policy
from vadpipe.fleet.simulation import Scheme, Simulated, busiest_proxy, with_one_more_proxy
from vadpipe.fleet.simulation import simulate as simulate_site
from vadpipe.fleet.site import Site, random_site

from .commands import json_option
from .output import show, table

_SCHEMES: dict[Scheme, str] = {
    "tokens": "vadpipe",
    "fifo": "the same limits, first in, first out",
    "slots": "slots per proxy alone",
}
_SHOWN = 8


@click.group()
def fleet() -> None:
    """Plan many backups on several machines: what a site allows, simulated."""


@fleet.command()
@click.argument("site", type=click.Path(path_type=Path), required=False)
@click.option(
    "--random", "disks", type=click.IntRange(min=1), metavar="DISKS", help="Make a site of this size."
)
@click.option("--hosts", type=click.IntRange(min=1), help="Of the random site; one for 50 disks by default.")
@click.option("--datastores", type=click.IntRange(min=1), help="The same; one for 250 disks by default.")
@click.option("--proxies", type=click.IntRange(min=1), help="The same; one for 500 disks by default.")
@click.option("--seed", default=0, show_default=True, help="Another random site for another number.")
@click.option(
    "--write", type=click.Path(path_type=Path), metavar="FILE", help="Write the random site as JSON."
)
@click.option(
    "--latency-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Give datastores fewer streams while their mean read latency is above this.",
)
@json_option
def simulate(
    site: Path | None,
    disks: int | None,
    hosts: int | None,
    datastores: int | None,
    proxies: int | None,
    seed: int,
    write: Path | None,
    latency_ms: float | None,
    as_json: bool,
) -> None:
    """Say when the backups of SITE (JSON) would end, what holds them up, and what one more proxy would bring.

    The scheduler of `vadpipe run --jobs` decides; a model of the site says how long everything takes. Nothing is
    contacted.
    """
    if (site is None) == (disks is None):
        raise click.UsageError("Name a SITE, or give --random DISKS.")
    if disks is not None:
        model = random_site(
            disks, hosts=hosts or 0, datastores=datastores or 0, proxies=proxies or 0, seed=seed
        )
        if write is not None:
            _write(write, model)
    else:
        assert site is not None
        model = _read(site)
    policy = Policy(latency_s=None if latency_ms is None else latency_ms / 1000)
    found: dict[Scheme, Simulated] = {
        scheme: simulate_site(model, scheme=scheme, policy=policy) for scheme in _SCHEMES
    }
    ours = found["tokens"]
    grown, added = with_one_more_proxy(model, busiest_proxy(ours))
    more = simulate_site(grown, policy=policy)
    document = {
        "vms": len(model.vms),
        "disks": sum(len(vm.disks) for vm in model.vms),
        "bytes": sum(disk.bytes for vm in model.vms for disk in vm.disks),
        "schemes": {scheme: one.as_dict() for scheme, one in found.items()},
        "one_more_proxy": {
            "like": busiest_proxy(ours),
            "end_s": more.end_s,
            "saves_s": ours.end_s - more.end_s,
        },
    }
    show(document, _lines(model, found, more, added), as_json)


def _read(path: Path) -> Site:
    try:
        document = json.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}.", remedy="Name an existing file.") from exc
    except ValueError as exc:
        raise ConfigError(f"{path} is no JSON: {exc}.", remedy="docs/fleet.md has an example.") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path} has no JSON object.", remedy="docs/fleet.md has an example.")
    return Site.from_json(document)


def _write(path: Path, model: Site) -> None:
    try:
        path.write_text(json.dumps(model.as_dict(), indent=1) + "\n")
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}.", remedy="Name another file.") from exc


def _lines(model: Site, found: dict[Scheme, Simulated], more: Simulated, added: str) -> list[str]:
    ours = found["tokens"]
    if not ours.end_s:
        return ["No job could run: no proxy can read the disks of any VM."]
    saves_s = ours.end_s - more.end_s
    lines = [
        f"{len(model.vms)} VMs, {sum(len(vm.disks) for vm in model.vms)} disks, {len(model.hosts)} hosts, "
        f"{len(model.datastores)} datastores, {len(model.proxies)} proxies",
        f"ends after {_hours(ours.end_s)}; no schedule ends before {_hours(ours.bound_s)} ({ours.bound_by}): "
        f"factor {ours.end_s / ours.bound_s:.2f}",
        f"bottleneck: {ours.bottleneck}, {ours.loads[0].share:.0%} in use",
        f"one more proxy like {busiest_proxy(ours)}: ends after {_hours(more.end_s)}, {_hours(abs(saves_s))} "
        + ("earlier" if saves_s >= 0 else "later"),
    ]
    if ours.late:
        lines.append(f"late: {len(ours.late)} jobs, {', '.join(ours.late[:_SHOWN])}")
    if ours.never:
        lines.append(f"no proxy can run: {len(ours.never)} jobs, {', '.join(ours.never[:_SHOWN])}")
    lines.append(
        f"CPU time of the scheduler for each of {ours.events} events: {ours.mean_ms:.2f} ms on average, "
        f"{ours.p99_ms:.2f} ms at most for 99 of 100, {ours.slowest_ms:.1f} ms at most"
    )
    rows = [
        [
            _SCHEMES[scheme],
            _hours(one.end_s),
            str(len(one.late)),
            str(len(one.broken)),
            f"{max(one.broken.values(), default=1.0):.1f}",
            f"{one.latency_s * 1000:.1f} ms",
        ]
        for scheme, one in found.items()
    ]
    header = ["ADMISSION BY", "END", "LATE", "LIMITS BROKEN", "BY FACTOR", "WORST LATENCY"]
    lines += ["", *table(header, rows, right=header[1:])]
    loads = [
        [load.resource, f"{load.share:.0%}", f"{load.peak:g}", f"{load.capacity:g}"] for load in ours.loads
    ]
    header = ["RESOURCE", "IN USE", "PEAK", "LIMIT"]
    return [*lines, "", *table(header, loads[:_SHOWN], right=header[1:])]


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
