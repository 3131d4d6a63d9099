"""Blocks: where the live entries of an array are, and how two sub-networks' blocks overlap."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from minicst.backend import Backend
from minicst.backend.base import Array


@dataclass
class Block:
    """The live entries of one parameter or buffer, with the arrays that they are moved between.

    Attributes:
        shape: of the full array.
        rows: numbers of its live rows (first axis), ascending; None: all. Where each weight has a
            mask of its own, the flat positions of the live ones.
        columns: of its live columns (last axis); None: all.
        places: rows and columns as arrays of the backend.
        pairs: (full array, small array) of its values and of each state of the optimizer.
    """

    shape: tuple[int, ...]
    rows: np.ndarray | None
    columns: np.ndarray | None
    places: tuple[Array | None, Array | None] = (None, None)
    pairs: list[tuple[Array, Array]] = field(default_factory=list)

    def of(self, small: Array) -> tuple[int, ...]:
        """Shape of a small array of this block as rows and columns count it."""
        return (small.size,) if len(self.shape) == 1 else tuple(small.shape)

    def inside(self, larger: Block) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Rows and columns of these entries in the small array of a block that contains them.

        Raises:
            ValueError: if it lacks one.
        """
        return (
            _positions(self.rows, larger.rows, self.shape[0]),
            _positions(self.columns, larger.columns, self.shape[-1]),
        )


def _positions(inner: np.ndarray | None, outer: np.ndarray | None, size: int) -> np.ndarray | None:
    """Where numbers `inner` stand among `outer`, both ascending; None: all of range(size)."""
    if outer is None:
        return inner
    numbers = np.arange(size) if inner is None else inner
    position = np.searchsorted(outer, numbers)
    if position.max(initial=-1) >= outer.size or (outer[position] != numbers).any():
        raise ValueError("the larger sub-network lacks live entries of this one")
    return position


def on(
    backend: Backend, rows: np.ndarray | None, columns: np.ndarray | None
) -> tuple[Array | None, Array | None]:
    """Rows and columns as arrays of the backend."""
    return together(backend, [(rows, columns)])[0]


def together(
    backend: Backend, pairs: list[tuple[np.ndarray | None, np.ndarray | None]]
) -> list[tuple[Array | None, Array | None]]:
    """The same for many, each array once and all in one transfer."""
    arrays = {id(a): a for pair in pairs for a in pair if a is not None}
    places: dict[int, Array] = dict(
        zip(arrays, backend.indices(list(arrays.values())), strict=True)
    )
    return [(places.get(id(rows)), places.get(id(columns))) for rows, columns in pairs]


Numbers = np.ndarray | None  # of rows or columns, ascending; None: all


@dataclass
class Overlap:
    """Entries that two blocks of one array have in common, as places in either small array."""

    own: tuple[Numbers, Numbers]
    theirs: tuple[Numbers, Numbers]
    size: tuple[int, int]

    def shape(self, small: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the common entries, given that of a small array."""
        if len(small) == 1:
            return (self.size[0],)
        return (self.size[0], *small[1:-1], self.size[1])


def overlap(own: Block, theirs: Block) -> Overlap | None:
    """Return what two blocks of one array have in common, None if that is nothing."""
    rows = _common(own.rows, theirs.rows, own.shape[0])
    columns = _common(own.columns, theirs.columns, own.shape[-1])
    if not rows[2] or not columns[2]:
        return None
    return Overlap((rows[0], columns[0]), (rows[1], columns[1]), (rows[2], columns[2]))


def _common(own: Numbers, theirs: Numbers, size: int) -> tuple[Numbers, Numbers, int]:
    """Places of common numbers in either list, and how many they are."""
    if own is None and theirs is None:
        return None, None, size
    if own is None:
        assert theirs is not None
        return theirs, None, theirs.size
    if theirs is None:
        return None, own, own.size
    _, at_own, at_theirs = np.intersect1d(own, theirs, assume_unique=True, return_indices=True)
    return at_own, at_theirs, at_own.size
