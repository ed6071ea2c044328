"""Failures on demand: before and after the work, by count and by chance, in calls and in tasks; restarts."""

import contextlib
import http.client
import ssl
import threading
import time

import pytest
from pyVmomi import vim, vmodl

from tests.vadpipe.lab.vcenter.restoring import config, controller, devices, disk
from vadpipe.lab.vcenter.api import soap
from vadpipe.lab.vcenter.faults.injection import Delay, Drop, Event, Injections, Refusal
from vadpipe.lab.vcenter.faults.kinds import FAULT_KINDS, RESTORE_FAULT_KINDS, fault_maker
from vadpipe.lab.vcenter.server import LabVcenter

BROKEN = (ConnectionError, http.client.HTTPException, ssl.SSLError)


def test_there_are_at_least_forty_kinds_of_fault_and_all_can_be_sent():
    assert len(set(FAULT_KINDS)) >= 40
    for name in (*FAULT_KINDS, *RESTORE_FAULT_KINDS):
        encoded = soap.encode_fault(fault_maker(name)(), "vim.version.version12")
        assert b"Fault" in encoded
    with pytest.raises(KeyError):
        fault_maker("NoSuchFault")


def test_a_fault_may_come_after_the_work(vcenter, client, vm):
    vcenter.inject("CreateSnapshot_Task", fault_maker("SystemError"), after=True)
    with pytest.raises(vmodl.fault.SystemError):
        vm.api.CreateSnapshot_Task("a", "", False, False)
    while not vcenter.idle:
        time.sleep(0.001)
    assert len(vcenter.snapshots(vm.moref)) == 1


def test_a_task_that_fails_after_its_work(vcenter, vm):
    vcenter.inject("CreateSnapshot_Task", vim.fault.FilesystemQuiesceFault, in_task=True, after=True)
    with pytest.raises(vim.fault.FilesystemQuiesceFault):
        vm.finish(vm.api.CreateSnapshot_Task("a", "", False, False))
    assert len(vcenter.snapshots(vm.moref)) == 1


def test_faults_by_chance_repeat_with_their_seed():
    def row(seed):
        injections = Injections()
        injections.seed(seed)
        injections.add("Call", Drop.AFTER, chance=0.3)
        return [bool(injections.before_call("Call")) for _ in range(100)]

    assert row(1) == row(1)
    assert row(1) != row(2)
    assert 15 < sum(row(1)) < 45


def test_a_fault_may_hit_any_method(vcenter, client):
    vcenter.inject("*", vim.fault.Timedout, nth=2)
    service = vim.ServiceInstance("ServiceInstance", client._stub)
    service.CurrentTime()
    with pytest.raises(vim.fault.Timedout):
        service.CurrentTime()
    service.CurrentTime()


def test_a_server_that_is_not_ready_answers_with_status_503(vcenter, client):
    vcenter.inject("CurrentTime", Refusal.UNAVAILABLE)
    with pytest.raises(http.client.HTTPException, match="503"):
        client.CurrentTime()


def test_events_happen_and_delays_end_when_it_is_calm(vcenter, client, vm):
    happened = threading.Event()
    vcenter.inject("CreateSnapshot_Task", Event(happened.set))
    vcenter.inject("CreateSnapshot_Task", Delay(), in_task=True)
    task = vm.api.CreateSnapshot_Task("a", "", False, False)
    assert happened.is_set()
    assert not vcenter.idle
    with pytest.raises(vim.fault.TaskInProgress):
        vm.api.CreateSnapshot_Task("b", "", False, False)
    vcenter.calm()
    vm.finish(task)
    assert vcenter.idle


def test_a_connection_has_no_place_in_a_task(vcenter):
    with pytest.raises(ValueError, match="no connection"):
        vcenter.inject("CreateSnapshot_Task", Drop.BEFORE, in_task=True)


def test_consolidation_that_fails_leaves_the_need_for_it(vcenter, vm):
    snapshot = vm.snapshot()
    vcenter.inject("consolidation", lambda: vim.fault.FileLocked(file="x"), in_task=True)
    with pytest.raises(vim.fault.FileLocked):
        vm.finish(snapshot.RemoveSnapshot_Task(False))
    assert vcenter.snapshots(vm.moref) == {}
    assert vcenter.needs_consolidation(vm.moref)
    assert vm.api.runtime.consolidationNeeded
    vm.finish(vm.api.ConsolidateVMDisks_Task())
    assert not vm.api.runtime.consolidationNeeded


def test_restart_forgets_sessions_and_tasks_but_hosts_go_on(vcenter, connect, client, vm):
    vcenter.inject("CreateSnapshot_Task", Delay(0.3), in_task=True)
    task = vm.api.CreateSnapshot_Task("a", "", False, False)
    port = vcenter.port
    blocked = threading.Thread(target=wait_until_cut, args=(client, vm.api))
    blocked.start()
    while not vcenter.calls.get("WaitForUpdatesEx"):
        time.sleep(0.001)
    vcenter.restart()
    blocked.join(timeout=10)
    assert not blocked.is_alive()
    assert vcenter.port == port
    with contextlib.suppress(*BROKEN), pytest.raises(vim.fault.NotAuthenticated):
        client.content.rootFolder.name  # noqa: B018
    again = connect(vcenter)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.Task(task._moId, again._stub).info  # noqa: B018
    while not vcenter.idle:
        time.sleep(0.001)
    assert len(vcenter.snapshots(vm.moref)) == 1


def wait_until_cut(client, subject):
    collector = client.content.propertyCollector
    spec = vmodl.query.PropertyCollector.FilterSpec(
        objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=subject)],
        propSet=[vmodl.query.PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    collector.CreateFilter(spec, False)
    version = ""
    with contextlib.suppress(vmodl.MethodFault, *BROKEN):
        while True:
            version = collector.WaitForUpdatesEx(version, None).version


@pytest.mark.parametrize("version", ["6.0", "6.5", "8.0.3.0"])
def test_a_host_tells_its_kind_and_version(tmp_path, connect, version):
    with LabVcenter(tmp_path, task_s=0, api_type="HostAgent", api_version=version) as host:
        about = connect(host).content.about
        assert (about.apiType, about.apiVersion) == ("HostAgent", version)


def test_the_clock_of_sessions_can_be_given(tmp_path, connect):
    now = [0.0]
    with LabVcenter(tmp_path, session_idle_s=1800, clock=lambda: now[0]) as vcenter:
        folder = connect(vcenter).content.rootFolder
        now[0] = 1799
        assert folder.name == "Datacenters"
        now[0] += 1801
        with pytest.raises(vim.fault.NotAuthenticated):
            folder.name  # noqa: B018


def _config(name):
    return config(name, controller(), disk(at=-1000))


def test_a_creation_fails_before_its_effect_or_after(vcenter, site):
    vcenter.inject("CreateVM_Task", lambda: vim.fault.NoDiskSpace(file="x", datastore="y"), in_task=True)
    with pytest.raises(vim.fault.NoDiskSpace):
        site.create(_config("web"))
    assert site.folder.childEntity == []
    vcenter.inject("CreateVM_Task", vmodl.fault.HostCommunication, in_task=True, after=True)
    with pytest.raises(vmodl.fault.HostCommunication):
        site.create(_config("web"))
    assert [vm.name for vm in site.folder.childEntity] == ["web"]


def test_the_answer_to_a_creation_is_lost(vcenter, site):
    vcenter.inject("CreateVM_Task", Drop.AFTER)
    with pytest.raises(BROKEN):
        site.folder.CreateVM_Task(_config("web"), site.pool, None)
    for _ in range(300):
        if vcenter.idle:
            break
        time.sleep(0.01)
    assert [vm.name for vm in site.folder.childEntity] == ["web"]


def test_every_second_reconfiguration_fails(vcenter, site):
    vm = site.create(_config("web"))
    vcenter.inject("ReconfigVM_Task", lambda: vim.fault.FileLocked(file="x"), 2)
    for unit, works in ((1, True), (2, False), (3, True)):
        spec = vim.vm.ConfigSpec(deviceChange=[disk(unit=unit)])
        if works:
            site.finish(vm.ReconfigVM_Task(spec))
        else:
            with pytest.raises(vim.fault.FileLocked):
                vm.ReconfigVM_Task(spec)
    assert {2000, 2001, 2003} == {key for key in devices(vm) if 2000 <= key < 3000}


def test_a_restart_during_a_creation_leaves_the_vm_and_no_task(vcenter, site, connect):
    vcenter._service.tasks._task_s = 0.4
    task = site.folder.CreateVM_Task(_config("web"), site.pool, None)
    vcenter.restart()
    client = connect(vcenter)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.Task(task._moId, client._stub).info  # noqa: B018
    for _ in range(300):
        if vcenter.idle:
            break
        time.sleep(0.01)
    assert vcenter.moref("web")
