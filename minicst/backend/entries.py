"""Flat positions of a block of rows and columns, for cut and paste on the CPU."""

from __future__ import annotations

from math import prod

import numpy as np


def flat_positions(
    shape: tuple[int, ...], rows: np.ndarray | None, columns: np.ndarray | None
) -> np.ndarray:
    """Flat positions, in a C-contiguous array, of rows (first axis) and columns (last axis).

    Args:
        shape: of the array.
        rows: their numbers, ascending; None: all.
        columns: their numbers, ascending; None: all.

    Returns:
        (entries,) integers, ascending.
    """
    row_size = prod(shape[1:])
    index = (np.arange(shape[0]) if rows is None else rows) * row_size
    if row_size == 1:
        return index
    if columns is None:
        return (index[:, None] + np.arange(row_size)).reshape(-1)
    taps = np.arange(0, row_size, shape[-1])  # kh * kw window positions
    within = (taps[:, None] + columns).reshape(-1)
    return (index[:, None] + within).reshape(-1)
