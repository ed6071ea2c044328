"""What the commands about versions share."""

from datetime import datetime, timedelta

import pytest
import trio

from pipeline import ConfigError
from vadpipe.cli.object_lock import _future
from vadpipe.cli.versions import administration, batches, moment


def test_a_signal_ends_the_work_between_batches():
    done = []

    def work(scope):
        for batch in batches(range(2000)):
            done.append(len(batch))
            trio.from_thread.run_sync(scope.cancel)

    async def main():
        with trio.CancelScope() as scope:
            await trio.to_thread.run_sync(work, scope)
        return scope.cancelled_caught

    assert trio.run(main)
    assert len(done) == 1


def test_batches_have_every_item_once():
    async def main():
        return await trio.to_thread.run_sync(
            lambda: [item for batch in batches(range(1500)) for item in batch]
        )

    assert trio.run(main) == list(range(1500))


def test_a_date_is_kept_until_its_end():
    begin = moment("2090-01-31")
    assert begin == datetime(2090, 1, 31).astimezone()
    assert _future("2090-01-31") == (begin + timedelta(days=1)).astimezone()
    assert _future("2090-01-31T20:00+01:00") == datetime.fromisoformat("2090-01-31T19:00+00:00")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/srv/backup", "not in a bucket"),
        ("s3://bucket/web?key=1", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/web?cache=none&wrong=1", "options are"),
    ],
)
def test_a_place_that_is_no_bucket_is_refused(place, told):
    with pytest.raises(ConfigError, match=told), administration(place):
        pass


def test_the_options_that_are_not_about_the_bucket_are_left_out():
    pytest.importorskip("boto3")
    with administration("s3://bucket/web?cache=none&throttle=5MiB&region=eu-1") as bucket:
        assert (bucket.location.prefix, bucket.location.region) == ("web", "eu-1")
