"""Where the seconds of a step go: by phase, layer and operation of the backend."""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minicst.backend import Backend, Meter
from minicst.bench.dense import hyper, plan
from minicst.bench.peers import Says
from minicst.bench.settings import Workload
from minicst.methods.base import Method
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense

REST = "rest"  # Python, and NumPy outside of the operations
NOT_OPERATIONS = ("asarray", "to_numpy", "configure", "synchronize")

Key = tuple[str, str, str]  # phase, layer, operation


def hot_operations() -> list[str]:
    """Names of the backend's operations: those that it declares, and its own methods on arrays."""
    declared = [name for name, kind in Backend.__annotations__.items() if "Callable" in str(kind)]
    methods = [
        name
        for name, value in vars(Backend).items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in NOT_OPERATIONS
    ]
    return [*declared, *methods]


class ClockMeter(Meter):
    """A meter that also books the seconds between two changes of phase or layer to what was left.

    Args:
        wait: waits for the device; without it, a GPU's seconds would go to whoever waits later.

    Attributes:
        seconds: {(phase, layer): seconds}.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._phase = self._layer = ""
        self._since = time.perf_counter()
        super().__init__()

    def book(self) -> None:
        """Book the time up to now."""
        self._wait()
        now = time.perf_counter()
        self.seconds[self._phase, self._layer] += now - self._since
        self._since = now

    @property
    def phase(self) -> str:
        """As Meter's."""
        return self._phase

    @phase.setter
    def phase(self, value: str) -> None:
        self.book()
        self._phase = value

    @property
    def layer(self) -> str:
        """As Meter's."""
        return self._layer

    @layer.setter
    def layer(self, value: str) -> None:
        self.book()
        self._layer = value


class OperationTimes:
    """Seconds and calls of each operation.

    Args:
        wait: as ClockMeter's.

    Attributes:
        meter: in place of the backend's while operations are timed.
        seconds: {(phase, layer, operation): seconds}; an operation that another one calls counts
            as part of that one.
        calls: {(phase, layer, operation): calls}.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.meter = ClockMeter(wait)
        self.seconds: dict[Key, float] = defaultdict(float)
        self.calls: dict[Key, int] = defaultdict(int)
        self.running = False

    def wrapped(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """Return the operation, timed."""

        @functools.wraps(operation)
        def timed(*arguments: Any, **options: Any) -> Any:
            if self.running:  # also on the threads of the operation that runs
                return operation(*arguments, **options)
            key = (self.meter.phase, self.meter.layer, name)
            self._wait()
            self.running, start = True, time.perf_counter()
            try:
                return operation(*arguments, **options)
            finally:
                self._wait()
                self.seconds[key] += time.perf_counter() - start
                self.calls[key] += 1
                self.running = False

        return timed


@contextmanager
def operation_times(backend: Backend) -> Iterator[OperationTimes]:
    """Time every operation of a backend, on this one object; afterwards it is as before.

    The device is waited for before and after each: what a GPU does at the same time as the host, or
    between operations, is not seen.
    """
    times = OperationTimes(backend.synchronize)
    own = dict(vars(backend))
    try:
        for name in hot_operations():
            if callable(operation := getattr(backend, name, None)):
                setattr(backend, name, times.wrapped(name, operation))
        times.meter.phase, times.meter.layer = backend.meter.phase, backend.meter.layer
        backend.meter = times.meter
        times.meter.seconds.clear()
        times.meter.book()
        times.meter.seconds.clear()
        yield times
        times.meter.book()
    finally:
        for name in set(vars(backend)) - set(own):
            delattr(backend, name)
        for name in (*hot_operations(), "meter"):
            if name in own:
                setattr(backend, name, own[name])


def layer_rows(workload: Workload, pairs: int, says: Says) -> list[dict[str, Any]]:
    """Time layers and operations of a dense step, and of Algorithm 1's at each share.

    Of `pairs` steps the one of median time is reported, so that its parts add up.

    Returns:
        One entry a step: {"share" (percent, None: dense), "seconds", "cells", "operations"}. A cell
        is a phase and a layer ("" is what belongs to none): {"phase", "layer", "seconds", "macs",
        "passes": {pass: macs}, "operations": {operation: seconds}}, "rest" included; and "gmacs"
        where it multiplies.
    """
    entries = []
    methods: list[tuple[float | None, Method]] = [
        (None, Dense(workload.build(), hyper(), plan(workload)))
    ]
    for at_share, rate in workload.keep_rates.items():
        methods.append((at_share, CompletelySparse(workload.build(), hyper(rate), plan(workload))))
    for share, method in methods:
        at = "dense" if share is None else f"Algorithm 1 at {share:g} %"
        says(f"{workload.label}: layers of a step, {at}")
        method.train_step(workload.batch)  # warms up
        steps = sorted((_timed_step(method, workload) for _ in range(pairs)), key=lambda s: s[0])
        seconds, times = steps[(len(steps) - 1) // 2]
        entries.append({"share": share, "seconds": seconds, **_cells(times)})
    return entries


def _timed_step(method: Method, workload: Workload) -> tuple[float, OperationTimes]:
    with operation_times(method.backend) as times:
        method.train_step(workload.batch)
    return sum(times.meter.seconds.values()), times


def _cells(times: OperationTimes) -> dict[str, Any]:
    operations: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for (phase, layer, name), seconds in times.seconds.items():
        operations[phase, layer][name] = seconds
    macs: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for (phase, layer, which), count in times.meter.macs.items():
        macs[phase, layer][which] = count
    cells = []
    totals: dict[str, float] = defaultdict(float)
    for (phase, layer), seconds in times.meter.seconds.items():
        parts = operations[phase, layer]
        # An operation's clock starts a little after the layer's; never report less than nothing.
        parts[REST] = max(seconds - sum(parts.values()), 0.0)
        for name, part in parts.items():
            totals[name] += part
        cell = {
            "phase": phase,
            "layer": layer,
            "seconds": seconds,
            "macs": (done := sum(macs[phase, layer].values())),
            "passes": macs[phase, layer],
            "operations": dict(sorted(parts.items(), key=lambda item: -item[1])),
        }
        cells.append(cell | ({"gmacs": done / seconds / 1e9} if done else {}))
    ordered = dict(sorted(totals.items(), key=lambda item: -item[1]))
    return {"cells": cells, "operations": ordered}
