"""Laws of how work is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minicst.backend.chunks import FOLD, fold_factor, folded, split


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(-2, 400), st.integers(1, 20))
def test_split_covers_the_range_in_nearly_equal_pieces(n, size, at_least):
    pieces = split(n, size, at_least)
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(n))
    lengths = [stop - start for start, stop in pieces]
    assert max(lengths) <= max(size, 1)
    assert max(lengths) - min(lengths) <= 1
    assert len(pieces) >= min(at_least, n)
    assert len(pieces) == max(-(-n // max(size, 1)), min(at_least, n), 1)


def test_split_by_hand():
    assert split(10, 4) == ((0, 3), (3, 6), (6, 10))
    assert split(2, 100, at_least=4) == ((0, 1), (1, 2))
    assert split(0, 5) == ((0, 0),)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 1200))
def test_fold_factor_is_the_largest_divisor_that_fits(rows, c):
    r = fold_factor(rows, c)
    assert rows % r == 0
    assert r == 1 or r * c <= FOLD
    better = [q for q in range(r + 1, rows + 1) if rows % q == 0 and q * max(c, 1) <= FOLD]
    assert not better


def test_folded_views_the_same_memory():
    x = np.arange(2 * 4 * 4 * 16.0).reshape(2, 4, 4, 16)
    rows, r = folded(x)
    assert (rows.shape, r) == ((1, 512), 32)
    assert np.shares_memory(rows, x)
    rows, r = folded(np.zeros((3, 5000)))
    assert (rows.shape, r) == ((3, 5000), 1)
    rows, r = folded(np.zeros((3, 2, 0)))
    assert (rows.shape, r) == ((0, 0), 1)
