"""What a capture does not confirm after the last read is not published."""

import pytest

from pipeline import Job, SourceError
from pipeline.testing.fakes import FakeMachine, FakeTarget, PatternDisk
from tests.pipeline.test_job import path


@pytest.mark.parametrize("moved", [None, SourceError("It was moved.")])
async def test_the_capture_is_asked_before_the_point_is_published(moved):
    target = FakeTarget()
    machine = FakeMachine([PatternDisk(5 << 20)], moved=moved)
    job = Job(machine, path, into=target)
    if moved is None:
        await job.run()
    else:
        with pytest.raises(SourceError, match="It was moved"):
            await job.run()
    assert len(target.published) == (moved is None)
    assert machine.released == ["released"]
