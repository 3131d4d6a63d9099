"""What the stand-in counts and what it lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np


@dataclass
class Counts:
    """Numbers since the last reset().

    Attributes:
        h2d_calls: copies from the host to the device.
        h2d_bytes: and what they moved.
        d2h_calls: copies from the device to the host.
        d2h_bytes: and what they moved.
        synchronisations: times that the host waited for the device.
        launches: computing calls: kernels, products, elementwise functions, fills, copies on the
            device.
        operand_copies: products whose operand is neither in C nor in Fortran order: CuPy copies it.
        peak_bytes: most that arrays held at a time.
    """

    h2d_calls: int = 0
    h2d_bytes: int = 0
    d2h_calls: int = 0
    d2h_bytes: int = 0
    synchronisations: int = 0
    launches: int = 0
    operand_copies: int = 0
    peak_bytes: int = 0

    def reset(self) -> None:
        for counter in fields(self):
            setattr(self, counter.name, 0)


class Entry(NamedTuple):
    """One copy between host and device."""

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    bytes: int


@dataclass
class Log:
    """What happened inside recording()."""

    entries: list[Entry] = field(default_factory=list)
    synchronisations: int = 0
    launches: list[str] = field(default_factory=list)

    @property
    def h2d(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "h2d"]

    @property
    def d2h(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind == "d2h"]


@dataclass
class Rules:
    """What a test may change.

    Attributes:
        allow_einsum: einsum is refused otherwise: CuPy makes a batched product of it.
        memory_limit: bytes that live arrays may take, rounded up to 512 each; None: no limit.
    """

    allow_einsum: bool = False
    memory_limit: int | None = None


counts = Counts()
rules = Rules()
_logs: list[Log] = []


@contextmanager
def recording() -> Iterator[Log]:
    """Keep a list of all copies between host and device, waits and launches inside."""
    log = Log()
    _logs.append(log)
    try:
        yield log
    finally:
        _logs[:] = [other for other in _logs if other is not log]


def count_copy(kind: str, array: np.ndarray) -> None:
    """Count a copy; kind is "h2d" or "d2h"."""
    setattr(counts, f"{kind}_calls", getattr(counts, f"{kind}_calls") + 1)
    setattr(counts, f"{kind}_bytes", getattr(counts, f"{kind}_bytes") + array.nbytes)
    for log in _logs:
        log.entries.append(Entry(kind, array.shape, array.dtype, array.nbytes))


def count_synchronisation() -> None:
    counts.synchronisations += 1
    for log in _logs:
        log.synchronisations += 1


def count_launch(name: str) -> None:
    counts.launches += 1
    for log in _logs:
        log.launches.append(name)
