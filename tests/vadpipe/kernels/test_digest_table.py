import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import DIGEST_SIZE
from tests.vadpipe.repository.repository_kit import digests
from vadpipe.kernels.digest_table import DigestTable


@pytest.mark.slow
@given(
    st.lists(st.sets(st.integers(0, 60), max_size=20), max_size=8), st.lists(st.integers(0, 80), max_size=40)
)
def test_a_digest_table_is_a_dict(batches, wanted):
    table, model = DigestTable(64), {}
    for batch in batches:
        new = [name for name in batch if name not in model]
        rows = table.insert(digests(new))
        model.update(zip(new, rows.tolist(), strict=True))
    assert table.lookup(digests(wanted)).tolist() == [model.get(name, -1) for name in wanted]
    assert len(table) == len(model)
    assert np.array_equal(table.digest, digests(list(model)))


def test_a_large_digest_table_finds_everything():
    random = np.random.default_rng(1)
    digest = random.integers(0, 256, (20_000, DIGEST_SIZE), dtype=np.uint8)
    table = DigestTable(len(digest))
    for low in range(0, len(digest), 777):
        table.insert(digest[low : low + 777])
    assert np.array_equal(table.lookup(digest), np.arange(len(digest)))
    assert (table.lookup(digest[:, ::-1]) == -1).all()
    with pytest.raises(ValueError, match="too many"):
        table.insert(digest[:1])
