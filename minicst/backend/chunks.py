"""How work is cut into chunks: by shape alone, never by the number of threads.

Chunk boundaries decide the order of float additions. As they depend on shapes only, one seed gives
the same bits on any number of threads.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

COLUMN_BYTES = 3 << 19  # im2col columns of one chunk: most of a core's L2 (best of .5 to 16 MB)
# Elementwise passes: the few operands of a chunk are near L2's size. Smaller chunks stay inside it,
# but two threads then wait for the interpreter's lock (statistics of 8 MB: .85 ms, .5 at 1 MB).
STREAM_BYTES = 1 << 20
FOLD = 1024  # elements of one folded row: long enough to hide NumPy's cost per inner loop


@lru_cache(maxsize=4096)
def split(n: int, size: int, at_least: int = 1) -> tuple[tuple[int, int], ...]:
    """Split range(n) into nearly equal (start, stop) pieces of at most `size`.

    Args:
        n: number of items.
        size: most items in a piece (1 is used if it is smaller).
        at_least: number of pieces wanted even if fewer would do (never more than n).
    """
    pieces = max(-(-n // max(size, 1)), min(at_least, n), 1)
    edges = [i * n // pieces for i in range(pieces + 1)]
    return tuple((edges[i], edges[i + 1]) for i in range(pieces))


@lru_cache(maxsize=4096)
def fold_factor(rows: int, c: int) -> int:
    """Return the largest r that divides `rows` with r * c <= FOLD (1 if there is none).

    NumPy pays per inner loop, and the inner loop of a broadcast (rows, c) with (c,) is c long:
    15 ns for 16 floats. Viewed as (rows / r, r * c), with the vector repeated r times, the same
    memory runs several times faster.
    """
    for r in range(max(min(FOLD // max(c, 1), rows), 1), 0, -1):
        if rows % r == 0:
            return r
    return 1


def folded(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Return x (..., c) viewed as (rows / r, r * c), and r."""
    c = x.shape[-1]
    rows = x.size // c if c else 0
    r = fold_factor(rows, c) if rows else 1
    return x.reshape(rows // r if rows else 0, r * c), r
