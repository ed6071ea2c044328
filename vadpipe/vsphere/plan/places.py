"""Where the restored VM goes: what names mean in the target, and whether there is room. Kernels over `Site`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..inventory.lookup import nearest
from .saved import SavedNetwork, SavedVm
from .values import Decision, Net, Place, PlannedDisk, Problem, Site, Store, Wanted


class _Named(Protocol):
    @property
    def moref(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def datacenter(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


@dataclass
class Findings:
    """What planning found out so far."""

    decisions: list[Decision] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Places:
    """Where the VM goes; what is None is a problem, but for `host`."""

    folder: Place | None = None
    pool: Place | None = None
    host: Place | None = None
    datastore: Store | None = None


def placed(saved: SavedVm, wanted: Wanted, site: Site, found: Findings) -> Places:
    """The places of the VM. What cannot be decided is added to the problems."""
    places = Places()
    places.folder = _folder(saved, wanted, site, found)
    inside = places.folder.datacenter if places.folder is not None else None
    places.pool = _pool(saved, wanted, site, found, inside)
    places.host = _host(saved, wanted, site, found, inside, places.pool)
    places.datastore = datastore_for(
        wanted.datastore or saved.datastore,
        site,
        found,
        places,
        "the configuration",
        asked=bool(wanted.datastore),
    )
    _decide(found, "folder", saved.folder, places.folder.path if places.folder else "")
    _decide(found, "resource pool", saved.pool, places.pool.path if places.pool else "")
    _decide(found, "host", saved.host, places.host.name if places.host else "")
    _decide(found, "datastore", saved.datastore, places.datastore.name if places.datastore else "")
    return places


def datastore_for(
    name: str, site: Site, found: Findings, places: Places, what: str, *, asked: bool
) -> Store | None:
    """The datastore with this name that the VM's host can use."""
    inside = places.folder.datacenter if places.folder is not None else None
    option = "datastore=" if what == "the configuration" else "datastores= (by disk key)"
    if not name:
        _add(
            found,
            "unknown datastore",
            f"It is not known which datastore {what} was on.",
            f"Name one with {option}.",
        )
        return None
    matches = _meant(name, site.datastores, inside, lambda one: one.name)
    if len(matches) > 1:
        reachable = [one for one in matches if _mounts(one, places, site)]
        matches = reachable or matches
    store = _one(name, matches, "datastore", site, found, [one.name for one in site.datastores], option)
    if store is None:
        return None
    if not store.accessible:
        _add(
            found,
            "datastore not accessible",
            f"The datastore {store.name} for {what} is not accessible.",
            f"Name another one with {option}, or mount it.",
        )
    elif not _mounts(store, places, site):
        host = places.host.name if places.host else (places.pool.path if places.pool else "the pool")
        _add(
            found,
            "datastore not on the host",
            f"The datastore {store.name} for {what} is not mounted on {host}.",
            f"Name another one with {option}, or another host= or pool=.",
        )
    del asked
    return store


def network_for(
    old: SavedNetwork, label: str, wanted: Wanted, site: Site, found: Findings, places: Places
) -> tuple[Net | None, bool]:
    """The network for a NIC, and whether it is left out on purpose."""
    title = old.name or old.ids.get("portgroup_key") or old.ids.get("opaque_id") or ""
    chosen = wanted.networks.get(label, wanted.networks.get(old.name) if old.name else None)
    if chosen == "":
        return None, True
    inside = places.folder.datacenter if places.folder is not None else None
    remedy = f"Map it with networks={{{(old.name or label)!r}: 'new name'}}, or to '' to leave the NIC out."
    if chosen is None:
        same = [net for net in site.networks if old.ids and net.kind == old.kind and _same_ids(net, old)]
        if len(same) == 1 and (not old.name or same[0].name == old.name):
            return same[0], False
        chosen = old.name
    if not chosen:
        _add(
            found,
            "unknown network",
            f"It is not known on which network {label} was ({title or 'no name'}).",
            remedy,
        )
        return None, False
    matches = _meant(chosen, site.networks, inside, lambda one: one.name)
    if len(matches) > 1 and (alike := [one for one in matches if one.kind == old.kind]):
        matches = alike
    if len(matches) > 1 and (alike := [one for one in matches if _on_host(one.hosts, places, site)]):
        matches = alike
    net = _one(chosen, matches, "network", site, found, [one.name for one in site.networks], "", remedy)
    if net is not None and net.kind == "distributed" and not net.ids.get("switch_uuid"):
        _add(
            found,
            "unknown switch",
            f"The account does not see the distributed switch of the network {net.name} for {label}.",
            f"Let it read that switch. {remedy}",
        )
    if net is not None and not _on_host(net.hosts, places, site):
        place = places.host.name if places.host else (places.pool.path if places.pool else "the pool")
        _add(
            found, "network not on the host", f"The network {net.name} for {label} is not on {place}.", remedy
        )
    return net, False


def require_room(disks: Sequence[PlannedDisk], site: Site, found: Findings) -> None:
    """A problem for each datastore that has too little room, and for each disk that is too large for its own."""
    stores = {store.moref: store for store in site.datastores}
    needed: dict[str, int] = {}
    for disk in disks:
        needed[disk.datastore_moref] = needed.get(disk.datastore_moref, 0) + room_of(disk)
        store = stores.get(disk.datastore_moref)
        if store is not None and disk.capacity > store.largest_disk:
            _add(
                found,
                "disk too large",
                f"{disk.label} ({disk.key}) has {disk.capacity} bytes, and a disk on {store.name} has at most "
                f"{store.largest_disk}.",
                "Restore it elsewhere, or to a file.",
            )
    for moref, size in needed.items():
        store = stores.get(moref)
        if store is not None and store.free is not None and size > store.free:
            _add(
                found,
                "datastore too full",
                f"The disks on {store.name} take {size} bytes, and it has {store.free} free.",
                "Free some room, spread the disks with datastores=, or make them provisioning='thin'.",
            )


def room_of(disk: PlannedDisk) -> int:
    """Bytes that the disk takes on its datastore."""
    return min(disk.data, disk.capacity) if disk.provisioning == "thin" else disk.capacity


def _folder(saved: SavedVm, wanted: Wanted, site: Site, found: Findings) -> Place | None:
    if wanted.folder:
        return _place(wanted.folder, site.folders, None, "folder", site, found)
    if there := [one for one in site.folders if saved.folder and one.path == saved.folder]:
        return there[0]
    if len(site.folders) == 1:
        return site.folders[0]
    was = (
        f"The VM was in {saved.folder}, which is not on {site.server}"
        if saved.folder
        else "No folder is known"
    )
    near = _near(saved.folder.rpartition("/")[2], [one.name for one in site.folders])
    _add(found, "unknown folder", f"{was}.", f"Name one with folder=.{near}")
    return None


def _pool(saved: SavedVm, wanted: Wanted, site: Site, found: Findings, inside: str | None) -> Place | None:
    here = [one for one in site.pools if inside in (None, one.datacenter)]
    if wanted.pool:
        owned = [one for one in here if one.root and wanted.pool in (one.owner_name, one.owner)]
        by_path = [
            one
            for one in here
            if one.root and one.path.rpartition("/")[0].endswith(f"/{wanted.pool.strip('/')}")
        ]
        if not _meant(wanted.pool, here, None, _path) and (owned or by_path):
            return (owned or by_path)[0]
        return _place(wanted.pool, here, None, "resource pool", site, found, "pool=")
    if wanted.host:
        hosts = _meant(wanted.host, site.hosts, inside, _path)
        owners = {one.owner for one in hosts}
        if roots := [one for one in here if one.root and one.owner in owners]:
            same = [one for one in here if one.path == saved.pool and one.owner in owners]
            return (same or roots)[0]
    if there := [one for one in here if saved.pool and one.path == saved.pool]:
        return there[0]
    roots = [one for one in here if one.root]
    if cluster := [one for one in roots if saved.cluster and one.owner_name == saved.cluster]:
        return cluster[0]
    if len(roots) == 1:
        return roots[0]
    was = (
        f"The VM was in {saved.pool}, which is not on {site.server}"
        if saved.pool
        else "No resource pool is known"
    )
    near = _near(saved.pool.rpartition("/")[2], [one.owner_name or one.name for one in here])
    _add(found, "unknown resource pool", f"{was}.", f"Name a pool, a cluster or a host with pool=.{near}")
    return None


def _host(
    saved: SavedVm, wanted: Wanted, site: Site, found: Findings, inside: str | None, pool: Place | None
) -> Place | None:
    if wanted.host:
        host = _place(wanted.host, site.hosts, inside, "host", site, found)
        if host is not None and not host.accessible:
            _add(
                found,
                "host not available",
                f"The host {host.name} is not connected, or in maintenance mode.",
                "Name another one with host=, or leave it to the cluster.",
            )
        if host is not None and pool is not None and pool.owner and host.owner and pool.owner != host.owner:
            _add(
                found,
                "host not in the pool",
                f"The host {host.name} does not belong to the pool {pool.path}.",
                "Name a pool of that host with pool=, or leave out host=.",
            )
        return host
    if pool is None:
        return None
    of_pool = [one for one in site.hosts if one.owner == pool.owner and one.accessible]
    before = [one for one in of_pool if saved.host and one.name == saved.host]
    return before[0] if before else of_pool[0] if len(of_pool) == 1 else None


def _place(
    text: str,
    among: Sequence[Place],
    inside: str | None,
    what: str,
    site: Site,
    found: Findings,
    option: str = "",
) -> Place | None:
    matches = _meant(text, among, inside, _path)
    return _one(text, matches, what, site, found, [one.name for one in among], option or f"{what}=")


def _meant(text: str, among: Iterable[_N], inside: str | None, path: Callable[[_N], str]) -> list[_N]:
    """What a moref, an inventory path (or its end) or a name means, in this order."""
    here = [one for one in among if inside in (None, "", one.datacenter) or not one.datacenter]
    wanted = "/" + text.strip("/")
    for fits in (
        lambda one: one.moref == text,
        lambda one: path(one) == wanted,
        lambda one: one.name == text,
        lambda one: "/" in text and path(one).endswith(wanted),
    ):
        if matches := [one for one in here if fits(one)]:
            return matches
    return []


def _one(
    text: str,
    matches: Sequence[_N],
    what: str,
    site: Site,
    found: Findings,
    names: Iterable[str],
    option: str,
    remedy: str = "",
) -> _N | None:
    """The only match; else a problem."""
    if len(matches) == 1:
        return matches[0]
    if matches:
        refs = ", ".join(f"{_title(one)} ({one.moref})" for one in matches)
        _add(
            found,
            f"several {what}s",
            f"{len(matches)} {what}s on {site.server} are called {text!r}: {refs}.",
            remedy or f"Name it by its path or by its moref with {option}",
        )
        return None
    near = _near(text.rpartition("/")[2], names)
    _add(
        found,
        f"unknown {what}",
        f"There is no {what} {text!r} on {site.server}.",
        (remedy or f"Name another one with {option}, or check that the account sees it.") + near,
    )
    return None


def _title(one: _Named) -> str:
    return _path(one) if isinstance(one, Place) else one.name


def _path(one: _Named) -> str:
    return one.path if isinstance(one, Place) else one.name


def _near(text: str, names: Iterable[str]) -> str:
    near = nearest(text, names) if text else []
    return f" Near names: {', '.join(near)}." if near else ""


def _same_ids(net: Net, old: SavedNetwork) -> bool:
    return all(net.ids.get(name) == value for name, value in old.ids.items() if value)


def _mounts(store: Store, places: Places, site: Site) -> bool:
    return _on_host(store.hosts, places, site)


def _on_host(hosts: frozenset[str] | None, places: Places, site: Site) -> bool:
    """Whether the VM's host, or any host of its pool, is among these."""
    if hosts is None:
        return True
    if places.host is not None:
        return places.host.moref in hosts
    if places.pool is None:
        return True
    of_pool = {one.moref for one in site.hosts if one.owner == places.pool.owner}
    return not of_pool or bool(of_pool & hosts)


def _decide(found: Findings, what: str, old: str, new: str) -> None:
    if not new and what != "host":
        outcome, reason = "asked", "It has to be named."
    elif old == new:
        outcome, reason = "carried", "The target has it."
    elif new:
        outcome, reason = "mapped", "It was chosen in the target."
    else:
        outcome, reason = "mapped", "The target chooses one."
    found.decisions.append(Decision("place", what, outcome, old, new, reason))  # type: ignore[arg-type]


def _add(found: Findings, what: str, sentence: str, remedy: str) -> None:
    found.problems.append(Problem(what, sentence, remedy))
