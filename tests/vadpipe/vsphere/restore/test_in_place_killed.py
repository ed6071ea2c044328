"""A restore over a VM that is killed at any moment: it is found, told, and the next one completes it."""

import signal

import pytest
import trio

from pipeline import KiB
from tests.vadpipe.vsphere.restore import in_place_runs
from vadpipe.vsphere.journal.intents import IntentKind
from vadpipe.vsphere.vm.mark import SETTING
from vadpipe.vsphere.vm.sweep import Outcome, sweep

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("moment", in_place_runs.MOMENTS)
async def test_a_killed_restore_is_found_and_the_next_one_completes_it(original, moment):
    await original.back_up()
    original.write((0, 512 * KiB, b"x" * 10), (0, 2048 * KiB, b"new" * 2000), (1, 64 * KiB, bytes(8 * KiB)))
    original.state.power = "poweredOff"
    with in_place_runs.start(moment, original.where) as process:
        try:
            assert await trio.to_thread.run_sync(process.stdout.readline) == b"now\n"
            assert SETTING in original.state.extra_config
            if moment == "marked":  # at 'writing' the only span of each disk may be there already
                assert original.holds(0) == [False, False]
        finally:
            process.send_signal(signal.SIGKILL)
    async with original.vcenter.connect() as session:
        swept = await sweep(session, original.journal)
    [left] = [one for one in swept if one.intent.kind is IntentKind.ROLLBACK]
    assert original.state.power == "poweredOff"
    if moment == "marked":
        assert left.outcome is Outcome.REMOVED
        assert original.journal.intents() == []
        assert SETTING not in original.state.extra_config
        assert original.state.change_tracking
    else:
        assert left.outcome is Outcome.KEPT
        assert "Do not power it on: run the same restore again" in left.reason
        assert SETTING in original.state.extra_config

    receipt = await original.restore()
    assert list(receipt.failures) == []
    assert original.holds(0) == [True, True]
    assert original.journal.intents() == []
    assert list(original.journal.directory.glob("*.json")) == []
    assert SETTING not in original.state.extra_config
    assert original.state.change_tracking
    assert "Change tracking of web01 was reset" in " ".join(receipt.remarks)
