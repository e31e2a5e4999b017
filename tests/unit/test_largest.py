"""Which branches TopK chooses, against sorting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.pruning.policies import largest

SOME = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan, -np.nan, 1e-45, 3e38])


def by_sorting(row, wanted, visible):
    order = sorted(
        np.flatnonzero(visible), key=lambda j: (not np.isnan(row[j]), -np.nan_to_num(row[j], nan=0), j)
    )
    live = np.zeros(len(row), bool)
    live[order[:wanted]] = True
    return live


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
def test_the_largest_of_each_row(dtype, data):
    rows, n = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 9))
    values = np.array(data.draw(st.lists(SOME, min_size=rows * n, max_size=rows * n)), dtype).reshape(rows, n)
    visible = np.array(
        data.draw(st.lists(st.booleans(), min_size=rows * n, max_size=rows * n)), bool
    ).reshape(rows, n)
    if data.draw(st.booleans()):
        visible[...] = True
    wanted = np.array([data.draw(st.integers(0, int(row.sum()))) for row in visible], np.int64)
    got = largest(values, wanted, None if visible.all() else visible)
    assert got.shape == (rows, n)
    for i in range(rows):
        np.testing.assert_array_equal(got[i], by_sorting(values[i], wanted[i], visible[i]))
