"""A backend whose networks are files: for full models that are larger than memory."""

from __future__ import annotations

import itertools
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from minicst.backend.numpy_backend import NumpyBackend

# Of a file, so much is looked at before its pages are let go: what is resident stays small. They
# stay in the system's cache as long as there is room for them.
WINDOW_BYTES = 32 << 20


class DiskBackend(NumpyBackend):
    """The CPU's backend, but what networks and optimizers keep is mapped from files.

    The arrays are numbered in the order in which they are asked for. Built in the same order again,
    a network finds its numbers where it left them.

    Args:
        folder: of the files; made if it isn't there.
        fresh: whether new files are made, or those that are there are opened.
        threads: of the pool.

    Attributes:
        files: the mapped arrays, by number.
    """

    name = "disk"

    def __init__(self, folder: Path, fresh: bool = True, threads: int | None = None) -> None:
        super().__init__(threads)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.fresh = folder, fresh
        self.files: list[np.memmap] = []

    def path(self, number: int) -> Path:
        """File of the array of this number."""
        return self.folder / f"{number:04d}.npy"

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return zeros in a new file, or what an old one holds.

        Raises:
            ValueError: if there is no room on the disk, or the old file is missing or another one.
        """
        path = self.path(len(self.files))
        array = self._new(path, shape, dtype) if self.fresh else self._old(path, shape, dtype)
        self.files.append(array)
        return array

    def as_state(self, values: Any) -> np.ndarray:
        """Return values in a file; where files are there already, what they hold."""
        values = np.asarray(values)
        if mapping(values) is not None:
            return values
        array = self.zeros(values.shape, values.dtype)
        if self.fresh:
            array[...] = values
            forget(array)
        return array

    def gather(self, full: np.ndarray, entries: np.ndarray, small: np.ndarray) -> None:
        """Fill small with full's entries, window by window."""
        flat, out = full.reshape(-1), small.reshape(-1)
        for start, stop in _windows(full, entries):
            np.take(flat, entries[start:stop], out=out[start:stop], mode="wrap")
            forget(full)

    def scatter(self, full: np.ndarray, entries: np.ndarray, small: np.ndarray) -> None:
        """Set full's entries to small's numbers, window by window."""
        flat, values = full.reshape(-1), small.reshape(-1)
        for start, stop in _windows(full, entries):
            flat[entries[start:stop]] = values[start:stop]
            forget(full)

    def flush(self) -> None:
        """Write all that was changed to the disk."""
        for array in self.files:
            array.flush()

    @property
    def n_bytes(self) -> int:
        """Bytes of all files' arrays."""
        return sum(array.nbytes for array in self.files)

    def _new(self, path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with open(path, "r+b") as file:
                # A full disk is said here; met while a mapping is written, it ends the process.
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            raise ValueError(
                f"can't make room for {np.dtype(dtype).itemsize * int(np.prod(shape)):,} bytes of "
                f"the full model in {path}: {error.strerror or error}; free some space or choose "
                "another folder with --out"
            ) from error
        return array

    def _old(self, path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
        try:
            array = np.lib.format.open_memmap(path, mode="r+")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the full model's file {path} is missing or damaged ({error}); use a copy or "
                "start again"
            ) from error
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"the full model's file {path} holds {array.dtype}{array.shape}, and "
                f"{np.dtype(dtype)}{shape} is needed: it is another network's"
            )
        return array


def mapping(array: np.ndarray) -> mmap.mmap | None:
    """Return the mapping whose memory an array views, None if it is in ordinary memory."""
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "base", None)
    return owner


def forget(array: np.ndarray) -> None:
    """Let an array's pages go from this process; what was written to them stays in the file."""
    if (mapped := mapping(array)) is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _windows(full: np.ndarray, entries: np.ndarray) -> list[tuple[int, int]]:
    """Cut ascending positions where they pass from one window of the array to the next."""
    edges = np.arange(0, full.size, WINDOW_BYTES // full.itemsize)
    cuts = [*np.searchsorted(entries, edges).tolist(), entries.size]
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]
