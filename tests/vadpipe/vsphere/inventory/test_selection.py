"""Which VMs a selection means: the kernel over rows, then the whole against the lab."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from pipeline.errors import ConfigError, SourceError
from vadpipe.lab.vcenter.state.inventory import VmTraits
from vadpipe.vsphere.api.properties import Row
from vadpipe.vsphere.inventory.lookup import Inventory, Vm
from vadpipe.vsphere.inventory.selection import SelectVms, select_vms, selected


def row(reference: vim.ManagedEntity, name: str, parent: object = None, **values: object) -> Row:
    kind = type(reference).__name__.rpartition(".")[2]
    paths = {path.replace("__", "."): value for path, value in values.items()}
    return Row(kind, str(reference._moId), {"name": name, "parent": parent, **paths})


DC, VMS, WEB = vim.Datacenter("datacenter-2"), vim.Folder("group-v3"), vim.Folder("group-v11")
HOSTS, CLUSTER = vim.Folder("group-h4"), vim.ClusterComputeResource("domain-c7")
POOL, GOLD = vim.ResourcePool("resgroup-9"), vim.ResourcePool("resgroup-10")
SHOP, CART = vim.VirtualApp("resgroup-v20"), vim.VirtualApp("resgroup-v21")
ESX1, ESX2 = vim.HostSystem("host-8"), vim.HostSystem("host-12")
# A vApp with another one in it; two VMs of one name.
ROWS = [
    row(DC, "DC", vim.Folder("group-d1")),
    row(VMS, "vm", DC),
    row(WEB, "Web", VMS),
    row(HOSTS, "host", DC),
    row(CLUSTER, "Cluster", HOSTS),
    row(ESX1, "esx1", CLUSTER),
    row(ESX2, "esx2", CLUSTER),
    row(POOL, "Resources", CLUSTER),
    row(GOLD, "Gold", POOL),
    row(SHOP, "Shop", POOL, parentFolder=WEB),
    row(CART, "Cart", SHOP),
    row(vim.VirtualMachine("vm-1"), "web01", WEB, runtime__host=ESX1, resourcePool=GOLD),
    row(vim.VirtualMachine("vm-2"), "web02", WEB, runtime__host=ESX2, resourcePool=POOL),
    row(vim.VirtualMachine("vm-3"), "web01", VMS, runtime__host=ESX2, resourcePool=POOL),
    row(vim.VirtualMachine("vm-4"), "db01", parentVApp=CART, runtime__host=ESX1, resourcePool=CART),
    row(vim.VirtualMachine("vm-5"), "web-template", WEB, config__template=True),
    row(vim.VirtualMachine("vm-6"), "a%2fb", VMS, config__uuid="bios", runtime__host=ESX2),
]
TAGS = {
    "backup/daily": frozenset({("VirtualMachine", "vm-2"), ("VirtualMachine", "vm-3"), ("Folder", "vm-1")}),
    "backup/none": frozenset({("Folder", "group-v11")}),
    "backup/gone": frozenset({("VirtualMachine", "vm-99")}),
}


def select(*selections: SelectVms) -> list[Vm]:
    return selected(Inventory(ROWS), selections, TAGS, "vc01")


def morefs(*args: str, **settings: object) -> list[str]:
    return sorted(vm.moref for vm in select(SelectVms(*args, **settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("web*", ["vm-1", "vm-2", "vm-3"]),
        ("web0[2-9]", ["vm-2"]),
        ("web0[!2]", ["vm-1", "vm-3"]),
        ("*0?", ["vm-1", "vm-2", "vm-3", "vm-4"]),
        ("db01", ["vm-4"]),
        ("a/b", ["vm-6"]),
        ("/DC/vm/Web/*", ["vm-1", "vm-2", "vm-4"]),
        ("/DC/vm/web01", ["vm-3"]),
    ],
)
def test_a_pattern_matches_names_or_paths(pattern, found):
    assert morefs(pattern) == found


def test_case_matters_in_patterns():
    with pytest.raises(
        SourceError,
        match=r"No VM on vc01 is named Web\*; .*6 VMs, .*\. Near names: web-template, web01, web02\.",
    ):
        morefs("Web*")


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("/DC", ["vm-1", "vm-2", "vm-3", "vm-4", "vm-6"]),
        ("/DC/vm/Web", ["vm-1", "vm-2", "vm-4"]),
        ("DC/vm/Web/", ["vm-1", "vm-2", "vm-4"]),
        ("/DC/vm/Web/Shop", ["vm-4"]),
        ("/DC/vm/Web/Shop/Cart", ["vm-4"]),
        ("/DC/host/Cluster", ["vm-1", "vm-2", "vm-3", "vm-4", "vm-6"]),
        ("/DC/host/Cluster/esx1", ["vm-1", "vm-4"]),
        ("/DC/host/Cluster/Resources", ["vm-1", "vm-2", "vm-3", "vm-4"]),
        ("/DC/host/Cluster/Resources/Gold", ["vm-1"]),
    ],
)
def test_inside_selects_at_any_depth(place, found):
    assert morefs(inside=place) == found


def test_a_missing_place_names_near_ones():
    with pytest.raises(SourceError, match=r"no folder or other place '/DC/vm/Wep'.*Near names: /DC/vm/Web"):
        morefs(inside="/DC/vm/Wep")
    with pytest.raises(SourceError, match=r"no folder or other place '/DC/vm/web02'"):
        morefs(inside="/DC/vm/web02")


def test_a_tag_counts_on_the_vm_itself_only():
    assert morefs(tag="backup/daily") == ["vm-2", "vm-3"]
    with pytest.raises(
        SourceError, match=r"is tagged backup/none.*objects of the type Folder.*not pass it down"
    ):
        morefs(tag="backup/none")
    with pytest.raises(SourceError, match=r"is tagged backup/gone.*Check the selection"):
        morefs(tag="backup/gone")


def test_a_vm_must_meet_every_criterion():
    assert morefs("web*", inside="/DC/vm/Web", tag="backup/daily") == ["vm-2"]
    wanted = (
        r"No VM on vc01 is named db\*, inside /DC/vm/Web, tagged backup/daily, not x; .*Check the selection"
    )
    with pytest.raises(SourceError, match=wanted):
        morefs("db*", inside="/DC/vm/Web", tag="backup/daily", exclude=["x"])


def test_exclusions_are_patterns_or_selections():
    assert morefs("web*", exclude=["*02"]) == ["vm-1", "vm-3"]
    assert morefs("web*", exclude=["/DC/vm/Web/*"]) == ["vm-3"]
    assert morefs("web*", exclude=[SelectVms(tag="backup/daily")]) == ["vm-1"]
    assert morefs("*", exclude=[SelectVms("web*", exclude=["*02"]), "a*"]) == ["vm-2", "vm-4"]
    assert morefs("web*", exclude=["nothing"]) == ["vm-1", "vm-2", "vm-3"]


def test_templates_are_never_selected():
    with pytest.raises(SourceError, match=r"sees 6 VMs, of which these are never selected: 1 template\."):
        morefs("web-t*")


def test_agents_of_vsphere_are_never_selected_and_are_counted():
    agent = vim.ext.ManagedByInfo(extensionKey="com.vmware.vim.eam", type="cluster-agent")
    appliance = vim.ext.ManagedByInfo(extensionKey="com.example.appliances", type="appliance")
    rows = [
        *ROWS,
        row(vim.VirtualMachine("vm-7"), "vCLS-1", VMS, config__managedBy=agent),
        row(vim.VirtualMachine("vm-8"), "vCLS-2", VMS, config__managedBy=agent),
        row(vim.VirtualMachine("vm-9"), "appliance", VMS, config__managedBy=appliance),
    ]
    found = selected(Inventory(rows), [SelectVms("*")], TAGS, "vc01")
    assert [vm.name for vm in found if vm.moref in ("vm-7", "vm-8", "vm-9")] == ["appliance"]
    with pytest.raises(SourceError, match=r"never selected: 1 template, 2 agents of vSphere\."):
        selected(Inventory(rows), [SelectVms("vCLS*")], TAGS, "vc01")


def test_several_selections_list_a_vm_once_and_each_must_match():
    both = [SelectVms("web*"), SelectVms(tag="backup/daily")]
    assert [vm.path for vm in select(*both)] == ["/DC/vm/Web/web01", "/DC/vm/Web/web02", "/DC/vm/web01"]
    with pytest.raises(SourceError, match="is named nothing"):
        select(*both, SelectVms("nothing"))


def test_a_vm_whose_name_repeats_is_titled_by_its_path():
    [web01, web02] = select(SelectVms("/DC/vm/Web/web*"))
    assert (web01.title, web01.name) == ("/DC/vm/Web/web01", "web01")  # the other web01 is not selected
    assert (web02.title, web02.name) == ("web02", "web02")
    [in_vapp] = select(SelectVms("db*"))
    assert (in_vapp.path, in_vapp.datacenter) == ("/DC/vm/Web/Shop/Cart/db01", "DC")


def test_a_vm_without_a_readable_configuration_is_selected():
    [vm] = select(SelectVms("db01"))
    assert vm.uuid == ""
    [with_bios_uuid] = select(SelectVms("a/b"))
    assert with_bios_uuid.uuid == "bios"


names = st.sampled_from(["web01", "web02", "db01", "a/b"])
selections = st.recursive(
    st.builds(SelectVms, st.sampled_from(["*", "web*", "*01", "/DC/vm/Web/*"])),
    lambda inner: st.builds(SelectVms, st.just("*"), exclude=st.lists(names | inner, max_size=2)),
    max_leaves=4,
)


def found_by(selection: SelectVms) -> set[str]:
    try:
        return {vm.moref for vm in select(selection)}
    except SourceError:
        return set()


@given(selections, selections)
def test_excluding_is_set_difference(one, other):
    without = SelectVms(one.pattern, exclude=[*one.exclude, other])
    assert found_by(without) == found_by(one) - found_by(other)


@given(st.lists(selections.filter(found_by), min_size=1, max_size=3))
def test_several_selections_are_a_union_in_the_order_of_paths(several):
    found = select(*several)
    assert {vm.moref for vm in found} == set().union(*map(found_by, several))
    assert [vm.path for vm in found] == sorted(vm.path for vm in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectVms(), r"has no criterion.*every VM is SelectVms\('\*'\)"),
        (lambda: SelectVms(exclude=["x"]), "has no criterion"),
        (lambda: SelectVms(""), "is empty"),
        (lambda: SelectVms(tag="daily"), "several categories.*'backup/daily'"),
        (lambda: SelectVms(tag="backup/"), "several categories"),
        (lambda: SelectVms("*", exclude="x"), r"exclude=\['x'\]"),
    ],
)
def test_a_mistake_in_a_selection_is_a_config_error(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


async def test_vms_of_a_vcenter_are_selected_by_each_criterion(lab, vcenter, add_vm):
    first = add_vm("web02", folder="Web")
    second = add_vm("web01", folder="Web/Test", power="poweredOff")
    third = add_vm("web/01")
    add_vm("web-template", folder="Web", traits=VmTraits(template=True))
    lab.tags.attach(lab.tags.create("backup", "daily"), first)
    lab.tags.attach(lab.tags.create("backup", "never"), third)
    async with vcenter.connect() as session:
        found = await select_vms(session, [SelectVms("web*")])
        assert [vm.path for vm in found] == [
            "/Datacenter/vm/Web/Test/web01",
            "/Datacenter/vm/Web/web02",
            "/Datacenter/vm/web/01",
        ]
        assert [vm.moref for vm in found] == [second, first, third]
        assert all(re.fullmatch(r"[0-9a-f-]{36}", vm.uuid) for vm in found)
        assert [
            vm.moref for vm in await select_vms(session, [SelectVms(inside="/Datacenter/vm/Web/Test")])
        ] == [second]
        for place in ("Resources", "esxi01.lab.local"):
            inside = SelectVms(inside=f"/Datacenter/host/esxi01.lab.local/{place}")
            assert len(await select_vms(session, [inside])) == 3
        tagged = SelectVms(inside="/Datacenter/vm/Web", tag="backup/daily")
        assert [vm.moref for vm in await select_vms(session, [tagged])] == [first]
        untagged = SelectVms("*", exclude=[SelectVms(tag="backup/never")])
        assert [vm.moref for vm in await select_vms(session, [untagged])] == [second, first]
        with pytest.raises(SourceError, match=r"no tag 'backup/newer'.*Near names: backup/never"):
            await select_vms(session, [SelectVms("*", exclude=[SelectVms(tag="backup/newer")])])


async def test_an_empty_vcenter_is_an_error(vcenter):
    async with vcenter.connect() as session:
        with pytest.raises(SourceError, match=r"is named \*; the account sees 0 VMs"):
            await select_vms(session, [SelectVms("*")])
