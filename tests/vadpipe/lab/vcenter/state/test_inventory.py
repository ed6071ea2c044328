"""`inventory.json` of a lab from before VMs could be created still loads."""

import json

from pyVmomi import vim

from vadpipe.lab.vcenter.server import LabVcenter

NEWER = ("devices", "settings", "custom_values", "heartbeat")


def test_an_older_inventory_loads(tmp_path, make_vm, connect):
    root = tmp_path / "world"
    with LabVcenter(root, task_s=0) as first:
        moref = make_vm(first)
    document = json.loads((root / "inventory.json").read_text())
    for name in ("networks", "custom_fields"):
        del document[name]
    for fields in document["vms"]:
        for name in NEWER:
            del fields[name]
    for host in document["hosts"].values():
        del host["memory_mb"]
    (root / "inventory.json").write_text(json.dumps(document))
    with LabVcenter(root, task_s=0) as second:
        vm = vim.VirtualMachine(moref, connect(second)._stub)
        assert vm.guestHeartbeatStatus == "green"
        assert [one.name for one in vm.network] == ["VM Network"]
        assert {2000, 2001} <= {one.key for one in vm.config.hardware.device}
