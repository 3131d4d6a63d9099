"""A full model on disk, written so that a crash at any moment leaves a state to go on from."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from minicst.backend.disk_backend import DiskBackend
from minicst.checkpoint import read_arrays, write_arrays, write_text
from minicst.nn import Network
from minicst.optim import Optimizer
from minicst.sparse.subnetwork import Subnetwork

CHECKPOINT = "checkpoint.npz"
SHAPE, ROWS, COLUMNS, NUMBERS = (
    f"block/{what}/" for what in ("shape", "rows", "columns", "numbers")
)
Position = tuple[dict[str, Any], dict[str, np.ndarray]]  # a checkpoint's header and arrays


class Store:
    """Files of a full network and its optimizer, in the folder `full` of a run.

    A write of a sub-network has four parts:

        1  its numbers, their places and the run's position go to full/journal.npz, which takes
           that name only when it is whole and on the disk
        2  the numbers go to their places in the mapped files, and these to the disk
        3  the position goes to checkpoint.npz
        4  the journal is removed

    A crash before 1 is done loses the steps since the last write: the files hold its state, and
    checkpoint.npz its position. After 1, nothing is lost: 2 to 4 are done again from the journal.
    recover() tells which it was.

    Args:
        folder: of the run.
        fresh: whether it is new, or its files are opened.
        threads: of the pool that moves numbers.

    Attributes:
        backend: whose networks are files.
        writes: number of sub-networks written.
        seconds: that writing took.
    """

    def __init__(self, folder: Path, fresh: bool, threads: int | None = None) -> None:
        self.run_folder, self.folder = folder, folder / "full"
        if not fresh and not self.folder.is_dir():
            raise ValueError(
                f"there is no full model in {self.folder}: the run kept it on disk, and without it "
                "it can't go on"
            )
        self.backend = DiskBackend(self.folder, fresh, threads)
        self.writes, self.seconds = 0, 0.0

    @property
    def journal(self) -> Path:
        """File of a write that is on its way."""
        return self.folder / "journal.npz"

    def name(self, network: Network, optimizer: Optimizer) -> None:
        """Write full/index.json: which file holds what, for a reader with numpy.load."""
        files = {
            array.ctypes.data: self.backend.path(number).name
            for number, array in enumerate(self.backend.files)
        }
        arrays = full_arrays(network, optimizer)
        index = {name: files[array.ctypes.data] for name, array in arrays.items()}
        write_text(self.folder / "index.json", json.dumps(index, indent=2) + "\n")

    def write(self, sub: Subnetwork, position: Any, after: Any) -> None:
        """Write a sub-network and the run's position, in the four parts above."""
        start = time.perf_counter()
        hosted = sub.hosted(after)
        header, arrays = position
        write_arrays(self.journal, "journal", header, arrays | _packed(sub, hosted))
        sub.paste(hosted)
        self._conclude(header, arrays)
        self.writes += 1
        self.seconds += time.perf_counter() - start

    def write_position(self, position: Position) -> None:
        """Write the run's position alone; the full model is written already."""
        write_arrays(self.run_folder / CHECKPOINT, "checkpoint", *position)

    def recover(self, network: Network, optimizer: Optimizer) -> str | None:
        """Finish or forget a write that a crash interrupted.

        Returns:
            What was found and done, in a sentence; None if nothing was.

        Raises:
            ValueError: if the journal doesn't fit the network.
        """
        parts = list(self.folder.glob(f".{self.journal.name}.*.part"))
        for part in parts:
            part.unlink()
        if not self.journal.exists():
            if not parts:
                return None
            return (
                "a write of the full model was interrupted before it was complete: the steps since "
                "the last one are done again"
            )
        header, arrays = read_arrays(self.journal, "journal")
        full = full_arrays(network, optimizer)
        blocks = {key: array for key, array in arrays.items() if key.startswith("block/")}
        for key, numbers in blocks.items():
            if not key.startswith(NUMBERS):
                continue
            name = key.removeprefix(NUMBERS)
            if name not in full:
                raise ValueError(f"{self.journal} has '{name}', which the network doesn't have")
            array, of = full[name], name.partition("#")[0]
            rows, columns = blocks.get(ROWS + of), blocks.get(COLUMNS + of)
            shape = tuple(blocks[SHAPE + of].tolist())
            entries = self.backend.entries(shape, rows, columns)
            if entries.size != numbers.size:
                raise ValueError(f"{self.journal} doesn't fit '{name}' of the network")
            self.backend.scatter(array, entries, numbers)
        self._conclude(header, {k: a for k, a in arrays.items() if k not in blocks})
        return "an interrupted write of the full model was completed from its journal"

    def _conclude(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.backend.flush()
        plain = {key: header[key] for key in header.keys() - {"format", "version", "kind"}}
        self.write_position((plain, arrays))
        self.journal.unlink()
        with contextlib.suppress(OSError):  # some file systems have no such thing
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _packed(sub: Subnetwork, hosted: list[list[Any]]) -> dict[str, np.ndarray]:
    """Numbers of a sub-network and their places, as arrays by name."""
    arrays = {}
    for (name, block), numbers in zip(sub.blocks.items(), hosted, strict=True):
        arrays[SHAPE + name] = np.array(block.shape)
        if block.rows is not None:
            arrays[ROWS + name] = block.rows
        if block.columns is not None:
            arrays[COLUMNS + name] = block.columns
        keys = [] if sub.optimizer is None else list(sub.optimizer.state.get(name, ()))
        for key, array in zip(["", *(f"#{key}" for key in keys)], numbers, strict=True):
            arrays[f"{NUMBERS}{name}{key}"] = array
    return arrays


def full_arrays(network: Network, optimizer: Optimizer) -> dict[str, np.ndarray]:
    """{name: array} of a network's state, and of its optimizer's as `name#key`."""
    arrays = dict(network.state())
    for name, state in optimizer.state.items():
        arrays |= {f"{name}#{key}": array for key, array in state.items()}
    return arrays
