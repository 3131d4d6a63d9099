"""Products in blocks of rows against float64, at the edges of every block."""

import numpy as np
import pytest

from minicst.backend import products
from minicst.backend.products import SMALL_PRODUCT, SUM_ROWS, row_product, sum_product

# rows, k, n: whole and divided blocks, with rows to spare, of one row, none, large products
SHAPES = [
    (1, 5, 3),
    (4096, 144, 16),
    (4097, 144, 16),
    (1000, 27, 64),
    (1031, 288, 32),  # a prime: no block divides it
    (384 * 2 + 5, 576, 64),
    (50, 1500, 100),
    (0, 9, 4),
]


@pytest.fixture
def normal(rng):
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_row_product(normal, rows, k, n):
    a, b, out = normal(rows, k), normal(k, n), np.full((rows, n), np.nan, np.float32)
    row_product(a, b, out)
    want = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out, want, atol=2e-5 * np.sqrt(k))


@pytest.mark.parametrize(("rows", "k", "m"), SHAPES)
def test_sum_product(normal, rows, k, m):
    a, g, out = normal(rows, k), normal(rows, m), np.full((m, k), np.nan, np.float32)
    sum_product(g, a, out)
    want = g.astype(np.float64).T @ a.astype(np.float64)
    np.testing.assert_allclose(out, want, atol=2e-5 * np.sqrt(max(rows, 1)))


def test_float64_is_one_product(rng):
    a, b = rng.normal(size=(4097, 144)), rng.normal(size=(144, 16))
    out, total = np.empty((4097, 16)), np.empty((16, 144))
    row_product(a, b, out)
    assert np.array_equal(out, a @ b)
    sum_product(out, a, total)
    assert np.array_equal(total, out.T @ a)


@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_blocks_stay_small(rows, k, n):
    block = products._block_rows(rows, k, n)
    if products.MIN_ROWS * k * n <= SMALL_PRODUCT:
        assert (block + 1) * k * n > SMALL_PRODUCT / 2
        assert block * k * n <= SMALL_PRODUCT
    else:
        assert block <= products.CACHE_ROWS


def test_a_block_that_divides_the_rows_is_preferred():
    assert products._block_rows(3072, 144, 16) == 384  # of at most 434
    assert products._block_rows(1031, 144, 16) == 434  # a prime: rows are left over
    assert products._block_rows(4096, 4608, 512) == 0


def test_sum_blocks_are_of_small_products(monkeypatch, normal):
    seen = []
    matmul = np.matmul

    def watch(x, y, **options):
        seen.append(x.shape)
        return matmul(x, y, **options)

    monkeypatch.setattr(np, "matmul", watch)
    sum_product(normal(1000, 16), normal(1000, 144), np.empty((16, 144), np.float32))
    sum_product(normal(1000, 64), normal(1000, 576), np.empty((64, 576), np.float32))
    assert seen == [(10, 16, SUM_ROWS), (64, 1000)]
