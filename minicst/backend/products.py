"""Matrix products cut into the blocks of rows for which BLAS is fastest.

A convolution's products are tall: hundreds of thousands of rows (pixels), few columns (channels).
OpenBLAS copies the operands of a large product into buffers first, which a narrow one never earns
back. Up to SMALL_PRODUCT multiply-adds it has kernels that don't copy (AVX-512: 1.2 to 2 times as
fast at 8 to 64 channels); larger products run best while a block's rows stay in cache. numpy.matmul
of a stack of blocks is one call, so the interpreter is not asked between them.

Block sizes depend on shapes alone: one seed gives the same bits on any number of threads. Only
float32 is cut up: float64 is for proofs, which one product per chunk makes sharper.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SMALL_PRODUCT = 10**6  # source: OpenBLAS, kernel/x86_64/sgemm_small_kernel_permit_skylakex.c
SUM_ROWS = 96  # rows of one block of a sum over rows (measured best of 64 ... 1536)
MIN_ROWS = 64  # smaller blocks lose more at their edges than they gain
CACHE_ROWS = 384  # rows of a block of a larger product (measured best of 48 ... 12288)
WIDE = 1 << 17  # elements of b from which blocks of CACHE_ROWS gain nothing


def row_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write a @ b into out.

    Args:
        a: (rows, k), contiguous.
        b: (k, n), contiguous: BLAS's small kernels are slower for a transposed one.
        out: (rows, n), contiguous.
    """
    rows, k = a.shape
    n = b.shape[1]
    block = _block_rows(rows, k, n) if a.dtype == np.float32 else 0
    whole = rows // block * block if block else 0
    if whole:
        blocks = out[:whole].reshape(-1, block, n)
        np.matmul(a[:whole].reshape(-1, block, k), b, out=blocks)
    if whole < rows:
        np.matmul(a[whole:], b, out=out[whole:])


@lru_cache(maxsize=4096)
def _block_rows(rows: int, k: int, n: int) -> int:
    """Rows of a block of (rows, k) @ (k, n); 0: the product is best left whole."""
    most = SMALL_PRODUCT // max(k * n, 1)
    if most < MIN_ROWS:
        most = CACHE_ROWS if k * n < WIDE else 0
    for block in range(most, most // 2, -1):
        if rows % block == 0:
            return block
    return most


def sum_product(g: np.ndarray, a: np.ndarray, out: np.ndarray) -> None:
    """Write g.T @ a, a sum over rows, into out.

    Args:
        g: (rows, m), contiguous.
        a: (rows, k), contiguous.
        out: (m, k), contiguous.
    """
    rows, m = g.shape
    k = a.shape[1]
    small = a.dtype == np.float32 and m * k * SUM_ROWS <= SMALL_PRODUCT
    whole = rows // SUM_ROWS * SUM_ROWS if small else 0
    if not whole:
        np.matmul(g.T, a, out=out)
        return
    blocks = g[:whole].reshape(-1, SUM_ROWS, m).transpose(0, 2, 1)
    np.matmul(blocks, a[:whole].reshape(-1, SUM_ROWS, k)).sum(axis=0, out=out)
    if whole < rows:
        out += g[whole:].T @ a[whole:]
