"""The model of a site, and what the scheduler makes of it."""

import json
from dataclasses import replace

import pytest

from pipeline.errors import ConfigError
from vadpipe.fleet.scheduler import Policy
from vadpipe.fleet.simulation import busiest_proxy, lower_bound, simulate, with_one_more_proxy
from vadpipe.fleet.site import Datastore, Host, Site, SiteDisk, SiteVm, random_site
from vadpipe.fleet.values import Proxy

RATE = 100.0  # bytes per second of a stream


def site(vms, *, streams=99, connections=99, slots=99, bytes_per_second=1e9, **settings):
    return Site(
        [Host("h1", connections, 1e12)],
        [Datastore("d1", bytes_per_second, streams=streams, removals=99)],
        [Proxy("p1", slots)],
        vms,
        stream_bytes_per_second={"nbdssl": RATE},
        begin_s=0.0,
        remove_s=0.0,
        **settings,
    )


def vm(name, *seconds, **settings):
    return SiteVm(name, "h1", [SiteDisk("d1", RATE * s, 1.0) for s in seconds], **settings)


def test_a_job_takes_what_its_disks_take_two_at_a_time():
    assert simulate(site([vm("a", 10, 10)])).end_s == pytest.approx(10)
    assert simulate(site([vm("a", 10, 10, 10)])).end_s == pytest.approx(20)


def test_begin_and_removal_count():
    assert simulate(replace(site([vm("a", 10)]), begin_s=3, remove_s=4)).end_s == pytest.approx(17)


def test_streams_share_what_their_datastore_has_and_its_latency_rises():
    shared = simulate(site([vm(f"v{n}", 10) for n in range(4)], bytes_per_second=200.0))
    assert shared.end_s == pytest.approx(20)
    assert shared.latency_s == pytest.approx(2 * Datastore("d").latency_s)


@pytest.mark.parametrize("limited", ["streams", "connections", "slots"])
def test_a_limit_holds_jobs_back_and_is_the_bottleneck(limited):
    found = simulate(site([vm(f"v{n}", 10) for n in range(4)], **{limited: 2}))
    assert found.end_s == pytest.approx(20)
    assert found.bound_s == pytest.approx(20)
    assert limited in found.bottleneck
    assert found.loads[0].share == pytest.approx(1)
    assert found.broken == {}


def test_slots_alone_break_the_limits_and_the_simulation_says_so():
    found = simulate(site([vm(f"v{n}", 10) for n in range(4)], connections=2), scheme="slots")
    assert found.broken == {"host:h1/connections": 2.0}


def test_first_in_first_out_starts_the_longest_job_last():
    vms = [vm(f"v{n}", 10) for n in range(4)] + [vm("long", 40)]
    assert simulate(site(vms, slots=2)).end_s == pytest.approx(40)
    assert simulate(site(vms, slots=2), scheme="fifo").end_s == pytest.approx(60)


def test_a_job_with_a_deadline_is_in_time_where_it_is_late_otherwise():
    vms = [*(vm(f"v{n}", 10) for n in range(4)), vm("due", 1, due_s=25)]
    assert simulate(site(vms, slots=1), policy=Policy(risk_s=10)).late == []
    assert simulate(site(vms, slots=1), scheme="fifo").late == ["due"]


def test_a_window_that_begins_later_is_waited_for():
    assert simulate(site([vm("a", 10, begins_s=100)])).end_s == pytest.approx(110)


def test_a_vm_that_no_proxy_can_read_is_named():
    away = replace(site([vm("a", 10)]), proxies=[Proxy("p1", 1, ("hotadd",), ("d2",))])
    found = simulate(replace(away, stream_bytes_per_second={"hotadd": RATE}))
    assert found.never == ["a"]


def test_one_more_proxy_halves_the_time_where_slots_are_short_and_changes_nothing_elsewhere():
    short = site([vm(f"v{n}", 10) for n in range(4)], slots=1)
    grown, _ = with_one_more_proxy(short, busiest_proxy(simulate(short)))
    assert simulate(short).end_s == pytest.approx(40)
    assert simulate(grown).end_s == pytest.approx(20)
    held = site([vm(f"v{n}", 10) for n in range(4)], streams=1, slots=4)
    grown, _ = with_one_more_proxy(held, "p1")
    assert simulate(grown).end_s == pytest.approx(simulate(held).end_s)


def test_the_lower_bound_counts_scarce_slots_of_the_best_way_together_with_streams():
    vms = [vm(f"v{n}", 10) for n in range(8)]
    base = replace(
        site(vms, streams=2),
        proxies=[Proxy("p1", 1, ("hotadd",)), Proxy("p2", 99)],
        stream_bytes_per_second={"hotadd": RATE, "nbdssl": RATE / 2},
    )
    # One stream at the full rate and one at half of it: 8 times 10 s of reading take 53.3 s.
    assert lower_bound(base)[0] == pytest.approx(53.3, rel=0.01)
    assert simulate(base).end_s >= 53.3


def test_a_random_site_is_the_same_for_the_same_seed_and_goes_through_json():
    one = random_site(300, seed=5)
    assert one == random_site(300, seed=5) != random_site(300, seed=6)
    again = Site.from_json(json.loads(json.dumps(one.as_dict())))
    assert simulate(again).end_s == simulate(one).end_s
    assert sum(len(vm.disks) for vm in one.vms) == 300


@pytest.mark.parametrize("seed", range(4))
def test_sites_of_every_kind_end_near_the_lower_bound_within_all_limits(seed):
    some = random_site(1000, seed=seed)
    found = simulate(some)
    assert found.broken == {}
    assert found.never == []
    assert found.bound_s <= found.end_s <= 1.25 * found.bound_s


@pytest.mark.slow
def test_ten_thousand_disks_end_within_a_tenth_of_the_lower_bound():
    large = random_site(10_000, hosts=200, datastores=40, proxies=20, seed=0)
    found = simulate(large)
    assert found.broken == {}
    assert found.never == []
    assert found.jobs == len(large.vms)
    assert found.end_s <= 1.10 * found.bound_s
    assert found.end_s < simulate(large, scheme="fifo").end_s
    slots = simulate(large, scheme="slots")
    assert found.end_s < slots.end_s
    assert slots.broken


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.pop("vms"), "vms"),
        (lambda d: d["hosts"].append(d["hosts"][0]), "two host entries 'h1'"),
        (lambda d: d["vms"][0].update(host="h9"), "'h9'"),
        (lambda d: d["vms"][0].update(disks=[]), "no disk"),
        (lambda d: d["vms"][0]["disks"][0].update(datastore="d9"), "'d9'"),
        (lambda d: d["vms"][0]["disks"][0].update(used=-1), "negative"),
        (lambda d: d["datastores"][0].update(bytes_per_second=0), "bytes per second"),
        (lambda d: d["proxies"][0].update(colour="blue"), "colour"),
        (lambda d: d.update(vms=7), "not"),
    ],
)
def test_a_site_with_a_mistake_is_refused_by_name(change, told):
    document = json.loads(json.dumps(site([vm("a", 1)]).as_dict()))
    change(document)
    with pytest.raises(ConfigError, match=told):
        Site.from_json(document)
