"""PropertyCollector: selection, pages, paths, waiting; views and the search index."""

import contextlib
import threading

import pytest
from pyVmomi import vim, vmodl

Collector = vmodl.query.PropertyCollector


def filter_spec(starts, wanted, select=(), skip=False):
    return Collector.FilterSpec(
        objectSet=[Collector.ObjectSpec(obj=start, skip=skip, selectSet=list(select)) for start in starts],
        propSet=[Collector.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in wanted.items()],
    )


def through_view(client, kinds):
    """A filter over all entities of these kinds, by way of a container view."""
    view = client.content.viewManager.CreateContainerView(client.content.rootFolder, list(kinds), True)
    step = Collector.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return filter_spec([view], kinds, [step], skip=True)


def watch(client, subject, *paths):
    """A collector of its own with one filter, and the version after the first update."""
    collector = client.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(filter_spec([subject], {type(subject): paths}), False)
    return collector, collector.WaitForUpdatesEx("", None)


def changes(update_set):
    return {
        (update.kind, update.obj._moId, change.name): change.val
        for filtered in update_set.filterSet
        for update in filtered.objectSet
        for change in update.changeSet
    }


@pytest.mark.slow
def test_300_vms_come_in_pages(vcenter, client):
    names = [f"vm {number:03}" for number in range(300)]
    morefs = {vcenter.register_vm(vcenter.datastore("datastore1") / name, name, []) for name in names}
    collector = client.content.propertyCollector
    spec = through_view(client, {vim.VirtualMachine: ["name", "runtime.powerState", "config.guestId"]})
    page = collector.RetrievePropertiesEx([spec], Collector.RetrieveOptions())
    sizes, found = [], {}
    while page:
        sizes.append(len(page.objects))
        for content in page.objects:
            found[content.obj._moId] = {item.name: item.val for item in content.propSet}
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
    assert sizes == [100, 100, 100]
    assert found.keys() == morefs
    assert sorted(facts["name"] for facts in found.values()) == names
    assert {facts["runtime.powerState"] for facts in found.values()} == {"poweredOn"}


def test_page_size_is_the_smaller_of_both_wishes(vcenter, client):
    for name in ("a", "b", "c"):
        vcenter.register_vm(vcenter.datastore("datastore1") / name, name, [])
    spec = through_view(client, {vim.VirtualMachine: ["name"]})
    collector = client.content.propertyCollector
    first = collector.RetrievePropertiesEx([spec], Collector.RetrieveOptions(maxObjects=2))
    assert len(first.objects) == 2
    assert len(collector.ContinueRetrievePropertiesEx(first.token).objects) == 1
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector.ContinueRetrievePropertiesEx(first.token)


def test_a_selection_of_nothing_has_no_result(client):
    spec = through_view(client, {vim.VirtualMachine: ["name"]})
    assert client.content.propertyCollector.RetrievePropertiesEx([spec], Collector.RetrieveOptions()) is None


def test_traversal_descends_folders_by_named_specs(vcenter, client, vm):
    down = Collector.TraversalSpec(
        name="folders",
        type=vim.Folder,
        path="childEntity",
        selectSet=[Collector.SelectionSpec(name="folders"), Collector.SelectionSpec(name="datacenters")],
    )
    into = Collector.TraversalSpec(
        name="datacenters",
        type=vim.Datacenter,
        path="vmFolder",
        selectSet=[Collector.SelectionSpec(name="folders")],
    )
    spec = filter_spec(
        [client.content.rootFolder],
        {vim.ManagedEntity: ["name"], vim.VirtualMachine: ["guestHeartbeatStatus"]},
        [down, into],
    )
    contents = client.content.propertyCollector.RetrieveProperties([spec])
    found = {content.obj._moId: [(item.name, item.val) for item in content.propSet] for content in contents}
    assert found[vm.moref] == [("guestHeartbeatStatus", "green")]  # the most derived type decides
    assert found["datacenter-2"] == [("name", "Datacenter")]
    assert len(found) == 4  # root, datacenter, VM folder, VM


def test_property_paths_reach_into_arrays(client, vm):
    paths = [
        "config.hardware.device[2001].backing.fileName",
        'config.extraConfig["disk.EnableUUID"].value',
        "config.files.snapshotDirectory",
        "snapshot",
    ]
    (content,) = client.content.propertyCollector.RetrieveProperties(
        [filter_spec([vm.api], {vim.VirtualMachine: paths})]
    )
    assert {item.name: item.val for item in content.propSet} == {
        paths[0]: "[datastore1] web01/web01_1.vmdk",
        paths[1]: "TRUE",
        paths[2]: "[datastore1] web01/",
    }
    with pytest.raises(vmodl.query.InvalidProperty) as wrong:
        client.content.propertyCollector.RetrieveProperties(
            [filter_spec([vm.api], {vim.VirtualMachine: ["config.nonsense"]})]
        )
    assert wrong.value.name == "config.nonsense"


def test_required_property_that_the_lab_lacks_is_missing(client, vm):
    (content,) = client.content.propertyCollector.RetrieveProperties(
        [filter_spec(vm.api.datastore, {vim.Datastore: ["name", "capability"]})]
    )
    assert [item.name for item in content.propSet] == ["name"]
    (missing,) = content.missingSet
    assert missing.path == "capability"
    assert isinstance(missing.fault, vmodl.fault.NotSupported)


def test_all_properties_of_every_entity_are_schema_valid(client, vm):
    vm.snapshot()
    everything = through_view(client, {vim.ManagedEntity: []})
    everything.propSet[0].all = True
    contents = client.content.propertyCollector.RetrieveProperties([everything])
    read = {type(content.obj).__name__: {item.name for item in content.propSet} for content in contents}
    assert {"config", "runtime", "guest", "summary", "snapshot", "layoutEx"} <= read["vim.VirtualMachine"]
    assert {"vim.HostSystem", "vim.Datastore", "vim.Network", "vim.ResourcePool"} <= read.keys()


def test_waiting_sees_a_task_to_its_end(client, vm):
    task = vm.api.PowerOffVM_Task()
    collector, update = watch(client, task, "info.state", "info.progress")
    states = [changes(update)["enter", task._moId, "info.state"]]
    while states[-1] not in ("success", "error"):
        update = collector.WaitForUpdatesEx(update.version, None)
        assert not update.truncated
        states += [val for (_, _, name), val in changes(update).items() if name == "info.state"]
    assert states[-1] == "success"
    assert vm.api.runtime.powerState == "poweredOff"
    assert [one._moId for one in vm.api.recentTask] == [task._moId]


def test_waiting_reports_only_what_changed(client, vm):
    collector, update = watch(client, vm.api, "name", "runtime.powerState", "snapshot")
    assert changes(update) == {
        ("enter", vm.moref, "name"): "web01",
        ("enter", vm.moref, "runtime.powerState"): "poweredOn",
    }
    vm.finish(vm.api.PowerOffVM_Task())
    second = collector.WaitForUpdatesEx(update.version, None)
    assert changes(second) == {("modify", vm.moref, "runtime.powerState"): "poweredOff"}
    # An answer that was lost is given again; older and unknown versions are not.
    again = collector.WaitForUpdatesEx(update.version, None)
    assert (again.version, changes(again)) == (second.version, changes(second))
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        collector.WaitForUpdatesEx("77", None)
    assert collector.WaitForUpdatesEx(second.version, Collector.WaitOptions(maxWaitSeconds=0)) is None


def test_a_wait_reports_objects_that_enter_and_leave(vcenter, client, vm):
    snapshot = vm.snapshot()
    collector, update = watch(client, snapshot, "vm")
    assert changes(update) == {("enter", snapshot._moId, "vm"): vm.api}
    vm.finish(snapshot.RemoveSnapshot_Task(removeChildren=False))
    update = collector.WaitForUpdatesEx(update.version, None)
    (gone,) = update.filterSet[0].objectSet
    assert (gone.kind, gone.obj) == ("leave", snapshot)


def raised_by_wait(vcenter, collector, version, end):
    """What a blocked wait in another thread raises when `end` is called, as often as it takes to hit it."""
    raised = []

    def wait():
        with pytest.raises(vmodl.MethodFault) as caught:
            collector.WaitForUpdatesEx(version, None)
        raised.append(caught.value)

    calls = vcenter.calls["WaitForUpdatesEx"]
    thread = threading.Thread(target=wait)
    thread.start()
    while vcenter.calls["WaitForUpdatesEx"] == calls:
        thread.join(timeout=0.001)
    while thread.is_alive():  # a call is counted before it waits, and a cancellation in between hits nobody
        end()
        thread.join(timeout=0.05)
    return raised[0]


def test_cancellation_from_another_thread_ends_a_wait(vcenter, client, vm):
    collector, update = watch(client, vm.api, "name")
    fault = raised_by_wait(vcenter, collector, update.version, collector.CancelWaitForUpdates)
    assert isinstance(fault, vmodl.fault.RequestCanceled)
    vm.finish(vm.api.ReconfigVM_Task(vim.vm.ConfigSpec(name="web02")))
    later = collector.WaitForUpdatesEx(update.version, None)
    assert changes(later) == {("modify", vm.moref, "name"): "web02"}


def test_destroying_the_collector_ends_its_wait(vcenter, client, vm):
    collector, update = watch(client, vm.api, "name")

    def destroy():
        with contextlib.suppress(vmodl.fault.ManagedObjectNotFound):
            collector.DestroyPropertyCollector()

    fault = raised_by_wait(vcenter, collector, update.version, destroy)
    # Destroyed between being found and being asked, it is not found.
    assert isinstance(fault, (vmodl.fault.RequestCanceled, vmodl.fault.ManagedObjectNotFound))


def test_expiry_ends_a_wait(vcenter, client, vm):
    collector, update = watch(client, vm.api, "name")
    fault = raised_by_wait(vcenter, collector, update.version, vcenter.expire_sessions)
    assert isinstance(fault, vim.fault.NotAuthenticated)


def test_destroyed_views_and_filters_are_gone(client, vm):
    collector = client.content.propertyCollector
    made = collector.CreateFilter(filter_spec([vm.api], {vim.VirtualMachine: ["name"]}), False)
    assert collector.filter == [made]
    made.DestroyPropertyFilter()
    assert collector.filter == []
    view = client.content.viewManager.CreateContainerView(client.content.rootFolder, [vim.Datastore], True)
    assert [one.name for one in view.view] == ["datastore1"]
    view.DestroyView()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        view.view  # noqa: B018


def test_the_search_index_finds_vms(client, vm):
    index = client.content.searchIndex
    config = vm.api.config
    assert index.FindByUuid(None, config.uuid, True, False) == vm.api
    assert index.FindByUuid(None, config.instanceUuid, True, True) == vm.api
    assert index.FindByUuid(None, config.uuid, True, True) is None
    assert index.FindByDnsName(None, "WEB01", True) == vm.api
    assert index.FindByInventoryPath("/Datacenter/vm/web01") == vm.api
    assert index.FindByInventoryPath("Datacenter/vm/web02") is None


def test_names_are_escaped_as_inventory_paths_need_it(vcenter, client):
    moref = vcenter.register_vm(vcenter.datastore("datastore1") / "odd", "50% a/b", [])
    found = client.content.searchIndex.FindByInventoryPath("Datacenter/vm/50%25 a%2fb")
    assert (found._moId, found.name) == (moref, "50%25 a%2fb")
