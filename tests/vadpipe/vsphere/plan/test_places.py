"""Where a restored VM goes, and each thing that forbids a restore: one sentence and a remedy."""

from dataclasses import replace

import pytest
from pyVmomi import vim

from pipeline.errors import ConfigError
from pipeline.units import GiB
from tests.vadpipe.vsphere.plan.plan_kit import SITE, config, plan, saved
from vadpipe.vsphere.plan.values import LARGEST_DISK, Net, Place, PointDisk, Site, Store, Wanted
from vadpipe.vsphere.restore.site import writable


def test_the_vm_goes_where_it_was():
    made = plan()
    assert made.folder.moref == "group-v4"
    assert made.pool.moref == "resgroup-8"
    assert made.host.moref == "host-8"
    assert made.datastore.moref == "datastore-1"


@pytest.mark.parametrize("text", ["vm", "/DC/vm", "group-v3", "DC/vm"])
def test_a_folder_is_named_by_name_path_or_reference(text):
    assert plan(wanted=Wanted(folder=text)).folder.moref == "group-v3"


@pytest.mark.parametrize(
    "text", ["Resources", "Cluster", "resgroup-8", "/DC/host/Cluster/Resources", "/DC/host/Cluster"]
)
def test_a_pool_is_named_by_itself_or_by_its_cluster(text):
    assert plan(wanted=Wanted(pool=text)).pool.moref == "resgroup-8"


def test_a_host_brings_its_pool_and_a_missing_host_leaves_the_choice_to_the_cluster():
    assert plan(wanted=Wanted(host="esxi02.example.com")).host.moref == "host-9"
    assert plan(saved(host="gone")).host is None


def _problems(**fields):
    site = fields.pop("site", SITE)
    vm = fields.pop("vm", None)
    disks = fields.pop("disks", None)
    return plan(vm, Wanted(**fields), site, disks).problems


def test_a_name_that_is_taken():
    [problem] = _problems(name="db01")
    assert (problem.what, "db01" in problem.sentence, "name=" in problem.remedy) == ("name taken", True, True)


@pytest.mark.parametrize(
    ("fields", "what", "near"),
    [
        ({"folder": "Wob"}, "unknown folder", "Web"),
        ({"pool": "Resource"}, "unknown resource pool", "Resources"),
        ({"host": "esxi03.example.com"}, "unknown host", "esxi01.example.com"),
        ({"datastore": "datastore9"}, "unknown datastore", "datastore1"),
        ({"networks": {"VM Network": "VM Netwerk"}}, "unknown network", "VM Network"),
    ],
)
def test_an_unknown_place_is_named_with_near_names(fields, what, near):
    problems = _problems(**fields)
    assert {one.what for one in problems} == {what}
    assert near in problems[0].remedy


def test_a_network_that_the_target_lacks_has_to_be_mapped():
    site = replace(SITE, networks=SITE.networks[1:])
    [problem] = _problems(site=site)
    assert problem.what == "unknown network"
    assert "networks={'VM Network': 'new name'}" in problem.remedy
    assert _problems(site=site, networks={"VM Network": "dv-web"}) == ()


def test_several_matches_are_listed():
    twice = replace(SITE, folders=(*SITE.folders, Place("group-v9", "Web", "/DC/vm/Old/Web", "DC")))
    [problem] = _problems(site=twice, folder="Web")
    assert problem.what == "several folders"
    assert "group-v9" in problem.sentence
    nets = replace(SITE, networks=(*SITE.networks, Net("network-2", "VM Network", "standard", {}, "DC")))
    assert [one.what for one in _problems(site=nets)] == ["several networks"]


def test_a_network_is_chosen_by_its_kind_where_names_are_the_same():
    nets = replace(
        SITE, networks=(*SITE.networks, Net("dvportgroup-2", "VM Network", "distributed", {}, "DC"))
    )
    assert _problems(site=nets) == ()


def test_a_datastore_that_is_too_full():
    full = replace(SITE, datastores=(replace(SITE.datastores[0], free=9 * GiB), SITE.datastores[1]))
    [problem] = _problems(site=full)  # thin 2 GiB and eager 8 GiB
    assert problem.what == "datastore too full"
    assert "datastore1" in problem.sentence
    assert _problems(site=full, datastores={"scsi1:1": "datastore2"}) == ()
    assert _problems(site=full, provisioning="thin") == ()


def test_a_datastore_that_the_host_does_not_mount_or_nobody_can_reach():
    assert {one.what for one in _problems(datastore="datastore2", host="host-9")} == {
        "datastore not on the host"
    }
    away = replace(SITE, datastores=tuple(replace(one, accessible=False) for one in SITE.datastores))
    assert {one.what for one in _problems(site=away)} == {"datastore not accessible"}


def test_a_disk_that_is_larger_than_the_target_takes():
    disks = [PointDisk("scsi0:0", LARGEST_DISK + 512, 0), PointDisk("scsi1:1", GiB, 0)]
    [problem] = _problems(disks=disks)
    assert problem.what == "disk too large"
    assert "Hard disk 1 (scsi0:0)" in problem.sentence


def test_an_encrypted_vm_comes_back_only_without_encryption():
    key = vim.encryption.CryptoKeyId(keyId="k1", providerId=vim.encryption.KeyProviderId(id="kms"))
    vm = saved(config(keyId=key))
    [problem] = _problems(vm=vm, site=replace(SITE, key_providers=frozenset({"other"})))
    assert problem.what == "encrypted"
    assert "key provider 'kms' is not on vc02.example.com" in problem.sentence
    made = plan(vm, Wanted(drop_encryption=True))
    assert made.problems == ()
    assert made.spec.crypto is None
    assert made.after.nvram is False


def test_a_host_in_maintenance_mode_is_not_taken():
    hosts = (SITE.hosts[0], replace(SITE.hosts[1], accessible=False))
    site = replace(SITE, hosts=hosts)
    assert [one.what for one in _problems(site=site, host="host-9")] == ["host not available"]


def test_places_of_another_datacenter_do_not_count():
    other = replace(SITE, datastores=(*SITE.datastores, Store("datastore-3", "datastore1", "DC2", free=1)))
    assert plan(site=other).datastore.moref == "datastore-1"


def test_an_esxi_host_needs_no_names():
    esxi = Site(
        server="esxi01",
        is_vcenter=False,
        api_version="8.0.3.0",
        folders=(Place("ha-folder-vm", "vm", "/ha-datacenter/vm", "ha-datacenter"),),
        pools=(Place("ha-root-pool", "Resources", "/x/Resources", "ha-datacenter", "ha-host", root=True),),
        hosts=(Place("ha-host", "esxi01", "/x/esxi01", "ha-datacenter", "ha-host"),),
        datastores=(Store("datastore-1", "datastore1"),),
        networks=(Net("HaNetwork", "VM Network"),),
    )
    made = plan(wanted=Wanted(networks={"dv-web": "VM Network"}), site=esxi)
    assert made.problems == ()
    assert (made.folder.moref, made.pool.moref, made.host.moref) == (
        "ha-folder-vm",
        "ha-root-pool",
        "ha-host",
    )


def test_problems_are_raised_together():
    made = plan(wanted=Wanted(name="db01", datastore="nowhere"))
    with pytest.raises(ConfigError) as raised:
        made.require_possible()
    assert "already has a 'db01'" in str(raised.value)
    assert "no datastore 'nowhere'" in str(raised.value)
    plan().require_possible()


def test_what_follows_the_data_is_what_the_target_has():
    after = plan(wanted=Wanted(power_on=True)).after
    assert after.tags == (("env", "prod"),)
    assert after.attributes == {"owner": "web team"}
    assert (after.nvram, after.change_tracking, after.power_on) == (True, True, True)
    bare = plan(wanted=Wanted(tags=False, attributes=False, nvram="fresh", change_tracking=False)).after
    assert (bare.tags, bare.attributes, bare.nvram, bare.change_tracking) == ((), {}, False, False)


def test_a_point_without_a_configuration_says_so():
    vm = replace(saved(), source="nothing", config=vim.vm.ConfigInfo(name="nbd"), disks=[], networks={})
    assert [one.what for one in plan(vm, disks=[PointDisk("disk0", GiB, 0)]).problems] == ["no configuration"]


def test_a_distributed_network_whose_switch_cannot_be_seen_has_to_be_mapped():
    networks = [
        replace(net, ids={"portgroup_key": "dvportgroup-9"}) if net.kind == "distributed" else net
        for net in SITE.networks
    ]
    [problem] = _problems(site=replace(SITE, networks=networks))
    assert problem.what == "unknown switch"
    assert "dv-web" in problem.sentence
    assert "networks=" in problem.remedy


@pytest.mark.parametrize(
    ("mode", "accessible", "usable"),
    [
        ("readWrite", True, True),
        ("readWrite", None, True),
        ("readOnly", True, False),
        ("readWrite", False, False),
    ],
)
def test_a_datastore_is_for_hosts_that_can_write_to_it(mode, accessible, usable):
    info = vim.host.MountInfo(path="/vmfs/volumes/1", accessMode=mode, accessible=accessible)
    assert writable(vim.Datastore.HostMount(key=vim.HostSystem("host-8"), mountInfo=info)) is usable
