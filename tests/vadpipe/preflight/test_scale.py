"""A thousand VMs: their facts in one pass, for less than five CPU-seconds of this process.

The lab runs in a process of its own, so that only the client's work is counted.
"""

import time

import pytest

from vadpipe.lab.vcenter.crowd import crowd
from vadpipe.preflight import gather
from vadpipe.preflight.facts import JobFacts
from vadpipe.preflight.rules import RULES
from vadpipe.rules import judge

COUNT = 1000


@pytest.mark.slow
async def test_a_thousand_vms_cost_less_than_five_cpu_seconds(tmp_path, record_property):
    with crowd(tmp_path, COUNT) as (vcenter, morefs):
        await _measure(vcenter, morefs, record_property)


async def _measure(vcenter, morefs, record_property):
    assert len(morefs) == COUNT
    async with vcenter.connect() as session:
        begun = time.process_time()
        gathered = await gather(session, morefs)
        gathering_s = time.process_time() - begun
        reports = [judge(RULES, gathered.case(moref, JobFacts())) for moref in morefs]
        judging_s = time.process_time() - begun - gathering_s
    record_property("gathering_cpu_s", round(gathering_s, 2))
    print(f"gathering {gathering_s:.2f} CPU-s, judging {judging_s:.2f} CPU-s")
    assert set(gathered.vms) == set(morefs)
    assert {len(vm.disks) for vm in gathered.vms.values()} == {2}
    assert len(reports) == COUNT
    assert all(vm.missing_privileges == frozenset() for vm in gathered.vms.values())
    assert gathering_s + judging_s < 5
