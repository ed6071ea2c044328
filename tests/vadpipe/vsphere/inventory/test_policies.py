"""The storage policies of a target, by name. No simulator here has the service, so its manager is stood in for."""

from contextlib import contextmanager

import pytest
from pyVmomi import pbm

from tests.vadpipe.vsphere.plan.plan_kit import saved
from vadpipe.vsphere.inventory import policies
from vadpipe.vsphere.plan.values import Wanted
from vadpipe.vsphere.restore.site import site_of


class Profiles:
    def PbmQueryProfile(self, kind, category):  # noqa: N802
        assert (kind.resourceType, category) == ("STORAGE", "REQUIREMENT")
        return [pbm.profile.ProfileId(uniqueId=one) for one in ("id-1", "id-2")]

    def PbmRetrieveContent(self, ids):  # noqa: N802
        names = {"id-1": "gold", "id-2": "silver"}
        return [pbm.profile.Profile(profileId=one, name=names[one.uniqueId]) for one in ids]


@pytest.fixture
def service(monkeypatch):
    @contextmanager
    def profiles(_):
        yield Profiles()

    monkeypatch.setattr(policies, "_profiles", profiles)


async def test_the_policies_of_the_target_are_asked_for_a_vm_that_has_one(lab, vcenter, add_vm, service):
    add_vm()
    async with vcenter.connect() as session:
        site = await site_of(session, saved(policy="gold"), Wanted())
        assert site.storage_policies == {"gold": "id-1", "silver": "id-2"}
        assert (await site_of(session, saved(), Wanted())).storage_policies is None


async def test_a_server_without_the_service_leaves_them_unknown(lab, vcenter, add_vm):
    add_vm()
    async with vcenter.connect() as session:
        assert (await site_of(session, saved(policy="gold"), Wanted())).storage_policies is None
