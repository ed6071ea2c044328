"""The scheduler: no limit is exceeded, nothing waits for ever, every token comes back once, equal in equal out."""

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from vadpipe.fleet.scheduler import Policy, Scheduler
from vadpipe.fleet.values import (
    Began,
    Cancelled,
    Ended,
    Found,
    Hold,
    Late,
    LatencyObserved,
    Learned,
    LimitChanged,
    Proxy,
    ProxyChanged,
    Remove,
    Request,
    Start,
    Stop,
    Submitted,
    TimePassed,
    Transferred,
    Way,
)

HOSTS = ["connections/h1", "connections/h2"]
DATASTORES = ["datastore:d1/streams", "datastore:d2/streams"]
REMOVALS = ["removals/d1", "removals/d2"]
NAMES = [*HOSTS, *DATASTORES, "share"]
CAPACITY = {"connections/h1": 4, "connections/h2": 2, DATASTORES[0]: 3, DATASTORES[1]: 4, "share": 0.7}
REMOVAL_CAPACITY = {"removals/d1": 1, "removals/d2": 2}


def simple(name, tokens, **settings):
    return Request(name, [Way("nbdssl", tokens)], **settings)


def started(decisions):
    return [decision.job for decision in decisions if isinstance(decision, Start)]


def scheduler(limits, slots=99, **settings):
    return Scheduler(limits, [Proxy("p1", slots)], **settings)


amounts = st.integers(1, 4)
needs = st.dictionaries(st.sampled_from([*HOSTS, *DATASTORES]), amounts, max_size=3)
ways = st.lists(
    st.builds(
        Way,
        st.sampled_from(["nbdssl", "hotadd"]),
        needs,
        st.sampled_from([(), ("d1",), ("d1", "d2")]),
        st.sampled_from([None, 5.0, 300.0]),
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def requests(draw, names):
    return Request(
        next(names),
        ways=draw(ways),
        tokens=draw(st.sampled_from([{}, {"share": 0.1}, {"share": 0.35}])),
        removal=draw(st.dictionaries(st.sampled_from(REMOVALS), st.integers(1, 2), max_size=2)),
        tenant=draw(st.sampled_from(["", "a", "b"])),
        expected_s=draw(st.sampled_from([0.0, 1.0, 10.0, 100.0])),
        deadline=draw(st.sampled_from([None, 50.0, 500.0])),
    )


class Machine(RuleBasedStateMachine):
    """Random events; an own count of what every running job holds stands against what the scheduler says."""

    submitted = Bundle("submitted")

    @initialize(
        passes=st.integers(1, 3),
        latency=st.sampled_from([None, 0.01]),
        order=st.sampled_from(["longest", "fifo"]),
    )
    def begin(self, passes, latency, order):
        self.policy = Policy(order=order, passes=passes, latency_s=latency, risk_s=5)
        self.proxies = {
            "p1": Proxy("p1", 2, ("nbdssl", "hotadd"), ("d1",)),
            "p2": Proxy("p2", 1, ("nbdssl",)),
        }
        self.capacity = {**CAPACITY, **REMOVAL_CAPACITY}
        self.kernel = self.new()
        self.events, self.answers = [], []
        self.names = (f"j{number}" for number in range(10**6))
        self.now = 0.0
        self.requests = {}
        self.running = {}  # job: (proxy, what it holds)
        self.removing = []
        self.waiting = set()
        self.stopping = set()
        self.transferred_once = set()

    def new(self):
        return Scheduler(
            {**CAPACITY, **REMOVAL_CAPACITY}, self.first_proxies(), policy=self.policy, tenants={"a": 2.0}
        )

    def first_proxies(self):
        return [Proxy("p1", 2, ("nbdssl", "hotadd"), ("d1",)), Proxy("p2", 1, ("nbdssl",))]

    def held(self):
        total = Counter()
        for _, tokens in self.running.values():
            total.update(tokens)
        return total

    def send(self, event):
        self.events.append(event)
        decisions = self.kernel.take(event)
        self.answers.append(decisions)
        for decision in decisions:
            match decision:
                case Start(job, proxy, transport):
                    self.check_start(job, proxy, transport)
                case Remove(job):
                    assert job in self.removing
                    self.removing.remove(job)
                    removal = {
                        name: min(amount, self.capacity[name])
                        for name, amount in self.requests[job].removal.items()
                    }
                    self.running[job][1].update(removal)
                    for name in removal:
                        assert self.held()[name] <= self.capacity[name]
                case Stop(job):
                    assert job in self.running
                    assert job not in self.stopping
                    self.stopping.add(job)
        return decisions

    def check_start(self, job, proxy, transport):
        assert job in self.waiting
        self.waiting.discard(job)
        request = self.requests[job]
        on = self.proxies[proxy]
        assert transport in on.transports
        held = self.held()
        fitting = []
        for way in request.ways:
            tokens = Counter(request.tokens)
            tokens.update(way.tokens)
            sees = on.datastores is None or set(way.sees) <= set(on.datastores)
            if (
                way.transport == transport
                and sees
                and all(held[name] + amount <= self.capacity[name] + 1e-9 for name, amount in tokens.items())
            ):
                fitting.append(tokens)
        assert fitting, "a limit is exceeded"
        assert sum(1 for where, _ in self.running.values() if where == proxy) < on.slots
        self.running[job] = (proxy, fitting[0])

    @rule(target=submitted, data=st.data(), count=st.integers(1, 4))
    def submit(self, data, count):
        batch = [data.draw(requests(self.names)) for _ in range(count)]
        # One way for each transport, so that a decision says which was gone.
        batch = [
            Request(**{**vars(one), "ways": list({way.transport: way for way in one.ways}.values())})
            for one in batch
        ]
        for one in batch:
            self.requests[one.job] = one
            self.waiting.add(one.job)
        self.send(Submitted(self.now, batch))
        return multiple(*(one.job for one in batch))

    @rule(target=submitted, data=st.data())
    def submit_unknown(self, data):
        one = data.draw(requests(self.names))
        one = replace(one, ways=one.ways[:1])
        self.requests[one.job] = one
        self.waiting.add(one.job)
        decisions = self.send(Submitted(self.now, [Request(one.job, tenant=one.tenant)]))
        assert started(decisions) == [] or one.job not in started(decisions)
        self.send(Learned(self.now, one))
        return one.job

    @rule(job=consumes(submitted), how=st.sampled_from(["done", "failed", "cancelled", "lost"]))
    def end(self, job, how):
        if job in self.running:
            self.running.pop(job)
            if job in self.removing:
                self.removing.remove(job)
            self.send(Ended(self.now, job, how))
            self.send(Ended(self.now, job, how))  # the second changes nothing
        else:
            self.waiting.discard(job)
            self.send(Cancelled(self.now, job))

    @rule(job=submitted)
    def cancel(self, job):
        self.waiting.discard(job)
        before = set(self.stopping)
        self.send(Cancelled(self.now, job))
        assert (job in self.stopping - before) == (job in self.running and job not in before)

    @rule(job=submitted)
    def transferred(self, job):
        if job in self.running and job not in self.removing:
            if job in self.transferred_once:
                return
            self.transferred_once.add(job)
            self.running[job] = (self.running[job][0], Counter(self.requests[job].tokens))
            self.removing.append(job)
            self.send(Transferred(self.now, job))

    @rule(name=st.sampled_from(NAMES), capacity=st.sampled_from([0, 1, 2, 5]))
    def change_limit(self, name, capacity):
        self.capacity[name] = capacity
        self.send(LimitChanged(self.now, name, capacity))

    @rule(slots=st.integers(0, 3), datastores=st.sampled_from([None, ("d1", "d2")]))
    def change_proxy(self, slots, datastores):
        self.proxies["p2"] = Proxy("p2", slots, ("nbdssl", "hotadd"), datastores)
        self.send(ProxyChanged(self.now, self.proxies["p2"]))

    @rule(datastore=st.sampled_from(["d1", "d2"]), latency=st.sampled_from([0.001, 0.01, 0.1]))
    def observe(self, datastore, latency):
        self.send(LatencyObserved(self.now, datastore, latency))

    @rule(passed=st.sampled_from([0.5, 10.0, 100.0]))
    def pass_time(self, passed):
        self.now += passed
        self.send(TimePassed(self.now))

    @invariant()
    def the_scheduler_counts_as_the_jobs_do(self):
        if not hasattr(self, "kernel"):
            return
        held = self.held()
        for use in self.kernel.uses():
            if not use.resource.startswith("proxy:"):
                assert use.used == pytest.approx(held[use.resource]), use
        assert set(self.kernel.running()) == set(self.running)
        assert set(self.kernel.waiting()) == self.waiting

    def teardown(self):
        if not hasattr(self, "kernel"):
            return
        again = self.new()
        assert [again.take(event) for event in self.events] == self.answers
        # With the limits of the beginning every job can start but those that want more than there is.
        for name, capacity in {**CAPACITY, **REMOVAL_CAPACITY}.items():
            self.capacity[name] = capacity
            self.send(LimitChanged(self.now, name, capacity))
        self.proxies["p2"] = Proxy("p2", 1, ("nbdssl", "hotadd"))
        self.send(ProxyChanged(self.now, self.proxies["p2"]))
        while self.running:
            job = next(iter(self.running))
            self.running.pop(job)
            if job in self.removing:
                self.removing.remove(job)
            self.send(Ended(self.now, job))
        for job in self.waiting:
            for way in self.requests[job].ways:
                tokens = Counter(self.requests[job].tokens)
                tokens.update(way.tokens)
                assert any(amount > self.capacity[name] for name, amount in tokens.items()), job
        assert not any(use.used or use.reserved for use in self.kernel.uses())


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnySequence = pytest.mark.slow(Machine.TestCase)


def test_a_job_whose_way_a_lower_limit_closed_takes_a_way_that_a_proxy_opens():
    kernel = Scheduler({DATASTORES[0]: 5}, [Proxy("p1", 1)])
    assert started(kernel.take(Submitted(0, [simple("first", {})]))) == ["first"]
    ways = [Way("hotadd", {}, ("d1",)), Way("nbdssl", {DATASTORES[0]: 4})]
    assert started(kernel.take(Submitted(0, [Request("both", ways)]))) == []
    assert Hold("both", DATASTORES[0], impossible=True) not in kernel.take(LimitChanged(1, DATASTORES[0], 5))
    closed = kernel.take(LimitChanged(1, DATASTORES[0], 3))
    assert [one.impossible for one in closed if isinstance(one, Hold) and one.job == "both"] == [True]
    assert started(kernel.take(ProxyChanged(2, Proxy("p2", 1, ("hotadd",))))) == ["both"]


def test_the_longest_job_of_a_batch_starts_first():
    kernel = scheduler({}, slots=1)
    batch = [
        simple("short", {}, expected_s=1),
        simple("long", {}, expected_s=9),
        simple("middle", {}, expected_s=5),
    ]
    assert started(kernel.take(Submitted(0, batch))) == ["long"]
    assert started(kernel.take(Ended(9, "long"))) == ["middle"]


def test_jobs_without_a_history_start_in_their_order():
    kernel = scheduler({}, slots=1)
    assert started(kernel.take(Submitted(0, [simple("b", {}), simple("a", {})]))) == ["b"]
    assert started(kernel.take(Ended(1, "b"))) == ["a"]


def test_jobs_of_the_busiest_resource_start_before_longer_ones_of_others():
    kernel = scheduler({"busy": 1, "idle": 9}, slots=1)
    batch = [
        simple("long", {"idle": 1}, expected_s=20),
        *(simple(f"b{n}", {"busy": 1}, expected_s=10) for n in range(5)),
    ]
    assert started(kernel.take(Submitted(0, batch))) == ["b0"]


def test_a_job_at_risk_starts_before_longer_ones_and_one_that_cannot_be_in_time_is_named():
    kernel = scheduler({}, slots=1, policy=Policy(risk_s=10))
    batch = [
        simple("long", {}, expected_s=50),
        simple("due", {}, expected_s=5, deadline=65),
        simple("next", {}, expected_s=40),
    ]
    assert started(kernel.take(Submitted(0, batch))) == ["long"]
    assert kernel.next_moment() == 50
    assert kernel.take(TimePassed(50)) == []
    assert started(kernel.take(Ended(55, "long"))) == ["due"]
    assert kernel.take(TimePassed(64)) == []
    assert kernel.take(TimePassed(66)) == [Late("due", 1)]
    assert kernel.take(TimePassed(70)) == []


def test_a_job_that_still_waits_at_its_latest_start_is_named():
    kernel = scheduler({}, slots=1)
    kernel.take(Submitted(0, [simple("first", {}, expected_s=100)]))
    kernel.take(Submitted(0, [simple("due", {}, expected_s=5, deadline=65)]))
    assert kernel.take(TimePassed(61)) == [Late("due", 1)]


def test_tenants_share_by_their_weights():
    kernel = scheduler({}, slots=1, tenants={"big": 3.0})
    jobs = [
        simple(f"{tenant}{n}", {}, tenant=tenant, expected_s=10)
        for tenant in ("big", "small")
        for n in range(40)
    ]
    [running] = started(kernel.take(Submitted(0, jobs)))
    order = [running]
    for now in range(39):
        [running] = started(kernel.take(Ended(now, running)))
        order.append(running)
    assert Counter(name.rstrip("0123456789") for name in order) == {"big": 30, "small": 10}


def test_a_tenant_that_comes_later_gets_no_credit_for_its_absence():
    kernel = scheduler({}, slots=1)
    [running] = started(
        kernel.take(Submitted(0, [simple(f"a{n}", {}, tenant="a", expected_s=10) for n in range(60)]))
    )
    for now in range(20):
        [running] = started(kernel.take(Ended(now, running)))
    kernel.take(Submitted(20, [simple(f"b{n}", {}, tenant="b", expected_s=10) for n in range(60)]))
    order = []
    for now in range(20):
        [running] = started(kernel.take(Ended(20 + now, running)))
        order.append(running[0])
    assert 9 <= order.count("b") <= 11


@pytest.mark.parametrize("same_batch", [True, False])
def test_a_job_that_needs_much_is_not_passed_for_ever(same_batch):
    """Small jobs come as fast as they end; the large one needs the whole of what they share."""
    passes = 20
    kernel = scheduler({"host": 4}, policy=Policy(passes=passes))
    large = simple("large", {"host": 4}, expected_s=1000 if same_batch else 0)
    small = (simple(f"small{n}", {"host": 1}, expected_s=1) for n in range(10**6))
    running = started(kernel.take(Submitted(0, [next(small) for _ in range(4)])))
    kernel.take(Submitted(0, [large, *([next(small) for _ in range(40)] if same_batch else [])]))
    after = 0
    while "large" not in running:
        after += 1
        assert after < passes + 10
        running += started(kernel.take(Submitted(after, [next(small)])))
        running += started(kernel.take(Ended(after, running.pop(0))))
    assert running == ["large"]


def test_a_short_job_is_not_passed_for_ever_by_longer_ones():
    kernel = scheduler({}, slots=1, policy=Policy(passes=20))
    [running] = started(kernel.take(Submitted(0, [simple("first", {}, expected_s=100)])))
    kernel.take(Submitted(0, [simple("short", {}, expected_s=1)]))
    for at in range(1, 30):
        kernel.take(Submitted(at, [simple(f"long{at}", {}, expected_s=100)]))
        [running] = started(kernel.take(Ended(at, running)))
        if running == "short":
            break
    assert (running, at) == ("short", 21)


def test_a_reservation_keeps_nobody_from_what_it_does_not_need():
    kernel = scheduler({"a": 2, "b": 2}, policy=Policy(passes=1))
    kernel.take(Submitted(0, [simple("r", {"a": 1})]))
    kernel.take(Submitted(0, [simple("large", {"a": 2})]))
    assert started(kernel.take(Submitted(1, [simple("s1", {"a": 1})]))) == ["s1"]
    assert started(kernel.take(Submitted(2, [simple("s2", {"a": 1})]))) == []
    assert started(kernel.take(Ended(3, "r"))) == []
    assert started(kernel.take(Submitted(4, [simple("other", {"b": 2})]))) == ["other"]
    assert started(kernel.take(Ended(5, "s1"))) == ["large"]


def test_a_job_that_wants_more_than_there_is_is_named_and_starts_when_the_limit_rises():
    kernel = scheduler({"host": 4})
    assert kernel.take(Submitted(0, [simple("large", {"host": 5})])) == [
        Hold("large", "host", impossible=True)
    ]
    assert started(kernel.take(Submitted(0, [simple("small", {"host": 4})]))) == ["small"]
    kernel.take(Ended(1, "small"))
    assert started(kernel.take(LimitChanged(2, "host", 5))) == ["large"]


def test_a_job_takes_the_way_that_is_free():
    proxies = [Proxy("p1", 1, ("hotadd",), ("d1",)), Proxy("p2", 2)]
    kernel = Scheduler({"host": 1}, proxies)
    both = [Way("hotadd", {}, sees=["d1"]), Way("nbdssl", {"host": 1})]
    decisions = kernel.take(Submitted(0, [Request(name, both) for name in ("j1", "j2", "j3")]))
    assert [one for one in decisions if isinstance(one, Start)] == [
        Start("j1", "p1", "hotadd"),
        Start("j2", "p2", "nbdssl"),
    ]
    assert kernel.take(Ended(1, "j1")) == [Start("j3", "p1", "hotadd")]


def test_a_job_waits_for_its_best_way_when_that_is_over_sooner():
    proxies = [Proxy("p1", 1, ("hotadd",)), Proxy("p2", 9)]
    kernel = Scheduler({}, proxies)
    both = [Way("hotadd", expected_s=100), Way("nbdssl", expected_s=400)]
    kernel.take(Submitted(0, [Request("j1", both, expected_s=100)]))
    assert started(kernel.take(Submitted(0, [Request("j2", both, expected_s=100)]))) == []
    assert Start("j3", "p2", "nbdssl") in kernel.take(
        Submitted(0, [Request("j3", [both[0], Way("nbdssl", expected_s=150)], expected_s=100)])
    )
    assert kernel.take(Ended(90, "j1")) == [Start("j2", "p1", "hotadd")]


def test_jobs_go_to_the_proxy_with_the_least_to_do():
    kernel = Scheduler({}, [Proxy("p1", 4), Proxy("p2", 2)])
    decisions = kernel.take(Submitted(0, [simple(f"j{n}", {}) for n in range(3)]))
    assert decisions == [Start(f"j{n}", proxy, "nbdssl") for n, proxy in enumerate(["p1", "p2", "p1"])]


def test_a_proxy_that_leaves_gets_no_job_and_one_that_comes_does():
    kernel = Scheduler({}, [Proxy("p1", 1)])
    kernel.take(ProxyChanged(0, Proxy("p1", 0)))
    assert kernel.take(Submitted(1, [simple("j", {})])) == [
        Hold("j", "slots of proxies with nbdssl", impossible=True)
    ]
    assert kernel.take(ProxyChanged(2, Proxy("p2", 1))) == [Start("j", "p2", "nbdssl")]


def test_snapshots_are_removed_one_after_the_other_and_the_slot_is_kept():
    kernel = scheduler({"removals": 1, "streams": 2}, slots=2)
    jobs = [simple(name, {"streams": 1}, removal={"removals": 1}) for name in ("j1", "j2", "j3")]
    kernel.take(Submitted(0, jobs))
    assert kernel.take(Transferred(1, "j1")) == [Remove("j1")]
    assert kernel.take(Transferred(2, "j2")) == []
    assert {use.resource: use.used for use in kernel.uses()} == {
        "removals": 1,
        "streams": 0,
        "proxy:p1/slots": 2,
    }
    decisions = kernel.take(Ended(3, "j1"))
    assert set(decisions) == {Remove("j2"), Start("j3", "p1", "nbdssl")}


def test_a_job_found_running_after_a_restart_counts_even_above_the_limit():
    kernel = scheduler({"host": 1})
    for name in ("j1", "j2"):
        assert kernel.take(Found(0, simple(name, {"host": 1}), "p1", "nbdssl")) == []
    assert started(kernel.take(Submitted(0, [simple("j3", {"host": 1})]))) == []
    assert started(kernel.take(Ended(1, "j1"))) == []
    assert started(kernel.take(Ended(2, "j2"))) == ["j3"]


def test_a_job_starts_only_when_its_needs_are_known():
    kernel = scheduler({"host": 1})
    assert kernel.take(Submitted(0, [Request("j")])) == [Hold("j", "")]
    assert kernel.take(Learned(1, simple("j", {"host": 1}))) == [Start("j", "p1", "nbdssl")]
    assert kernel.take(Began(1, "j")) == []


def test_the_brake_lowers_the_streams_of_a_slow_datastore_but_never_holds_one_job_alone():
    name = "datastore:d1/streams"
    kernel = scheduler({name: 8}, policy=Policy(latency_s=0.02))
    kernel.take(Submitted(0, [simple(f"j{n}", {name: 1}) for n in range(12)]))
    for at in range(10):
        kernel.take(LatencyObserved(at, "d1", 0.2))
    assert started(kernel.take(Ended(11, "j0"))) == []
    [use] = [use for use in kernel.uses() if use.resource == name]
    assert use.allowed is not None
    assert use.capacity is not None
    assert use.allowed < use.used < use.capacity
    for number in range(1, 4):
        assert started(kernel.take(Ended(12, f"j{number}"))) == []
    assert started(kernel.take(Ended(13, "j4"))) == ["j8"]


def test_a_braked_datastore_lets_a_job_with_several_streams_run_when_nothing_else_does():
    name = "datastore:d1/streams"
    kernel = scheduler({name: 4}, policy=Policy(latency_s=0.02))
    kernel.take(Submitted(0, [simple("j", {name: 1})]))
    kernel.take(LatencyObserved(1, "d1", 1.0))
    assert started(kernel.take(Submitted(2, [simple("wide", {name: 4})]))) == []
    assert started(kernel.take(Ended(3, "j"))) == ["wide"]


def test_two_jobs_of_one_name_and_impossible_needs_are_refused():
    kernel = scheduler({})
    kernel.take(Submitted(0, [simple("j", {})]))
    with pytest.raises(ValueError, match="'j'"):
        kernel.take(Submitted(0, [simple("j", {})]))
    with pytest.raises(ValueError, match="-1"):
        kernel.take(Submitted(0, [simple("k", {"host": -1})]))


def test_a_request_goes_through_json_unchanged():
    request = Request(
        "j", [Way("hotadd", {"a": 0.5}, ["d1"])], {"s": 1}, {"r": 1}, tenant="t", expected_s=3.0, deadline=4.0
    )
    assert Request.from_json(json.loads(json.dumps(asdict(request)))) == request
