"""Fixtures that every test may use."""

from collections.abc import Iterator

import numpy as np
import pytest

from minicst.backend import NumpyBackend, get_backend


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that gives every test the same numbers, in whatever order tests run."""
    return np.random.Generator(np.random.Philox(20210))


@pytest.fixture
def backend() -> Iterator[NumpyBackend]:
    """The CPU backend; its number of threads is restored afterwards."""
    backend = get_backend("cpu")
    threads = backend.threads
    yield backend
    backend.set_threads(threads)


@pytest.fixture(autouse=True)
def fresh_meter() -> None:
    """The backend is one per process, so its meter starts every test at zero."""
    meter = get_backend("cpu").meter
    meter.phase = meter.layer = ""
    meter.reset()
