"""The lab vCenter of the vSphere tests, with VMs of two disks."""

from functools import partial

import pytest

from tests.vadpipe.vsphere.conftest import add_vm as add_vm_of_one_disk
from tests.vadpipe.vsphere.conftest import lab
from tests.vadpipe.vsphere.vsphere_kit import settings_of
from vadpipe.vsphere.vm import power

__all__ = ["add_vm_of_one_disk", "lab"]


@pytest.fixture
def vcenter(lab):
    return settings_of(lab)


@pytest.fixture
def add_vm(add_vm_of_one_disk):
    """Registers a VM with small disks; returns its moref."""
    return partial(add_vm_of_one_disk, disks=2)


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch):
    monkeypatch.setattr(power, "POLL_S", 0.02)
