"""Fixtures that every test may use, and the devices that tests of the engine run on."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel_emulation
import numpy as np
import pytest
import strict_cupy
from arrays import at_the_edge

import minicst.backend
from minicst.backend import Backend, cpu_backend, get_backend, using, why_no_gpu
from minicst.backend.cupy_backend import CupyBackend

TESTS = Path(__file__).parent
WHY_NO_GPU = why_no_gpu()  # asked here, before any test puts the stand-in in CuPy's place
DEVICES = ("cpu", "stand-in", "cuda")
# Tests of what runs on a device: they run once on each. Beside NumPy that is a strict stand-in for
# CuPy, which runs the kernels' own text on the CPU, and CuPy itself where there is a GPU.
ON_EVERY_DEVICE = (
    "autograd",
    "methods",
    "models",
    "nn",
    "sparse/test_cut.py",
    "sparse/test_masked_form.py",
    "sparse/test_weight_masks.py",
    "test_optim.py",
    *(f"backend/test_{what}.py" for what in ("convolution", "depthwise", "normalization")),
    *(f"backend/test_{what}.py" for what in ("pooling", "sparse_linear", "updates")),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --device."""
    text = "run tests of the engine on this device only (repeatable): " + ", ".join(DEVICES)
    parser.addoption("--device", action="append", choices=DEVICES, help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the engine on every device, unless it is marked `cpu`."""
    where = metafunc.definition.path.relative_to(TESTS).as_posix()
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    chosen = metafunc.config.getoption("--device") or DEVICES
    everywhere = "cpu" not in marks and where.startswith(ON_EVERY_DEVICE)
    devices = [device for device in (DEVICES if everywhere else DEVICES[:1]) if device in chosen]
    if everywhere or "cpu" not in chosen:
        parameters = [
            pytest.param(device, marks=pytest.mark.gpu) if device == "cuda" else device
            for device in devices
        ]
        metafunc.parametrize("device", parameters, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out cases that are marked `cpu` on another device, and `deep` ones on the stand-in."""
    items[:] = [item for item in items if not _is_elsewhere(item)]


def _is_elsewhere(item: pytest.Item) -> bool:
    device = getattr(getattr(item, "callspec", None), "params", {}).get("device", "cpu")
    marks = {mark.name for mark in item.iter_markers()}
    return (device != "cpu" and "cpu" in marks) or (device == "stand-in" and "deep" in marks)


@functools.lru_cache(maxsize=1)
def stand_in() -> CupyBackend:
    """The GPU's backend on the stand-in."""
    return CupyBackend(strict_cupy, strict_cupy.cupyx)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that gives every test the same numbers, in whatever order tests run."""
    return np.random.Generator(np.random.Philox(20210))


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the device that the test runs on; tensors and networks are made there."""
    name = getattr(request, "param", "cpu")
    if name == "stand-in" and (reason := kernel_emulation.why_not()) is not None:
        pytest.skip(reason)
    if name == "cuda" and WHY_NO_GPU is not None:
        pytest.skip(WHY_NO_GPU)
    backend: Backend = stand_in() if name == "stand-in" else get_backend(name)
    with using(backend):
        yield name


@pytest.fixture
def backend(device: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The device's backend, which tests of its operations may give NumPy arrays.

    The CPU's number of threads is restored afterwards.
    """
    threads = cpu_backend().threads
    of_operations = request.path.parent.name == "backend"
    yield at_the_edge(get_backend()) if of_operations else get_backend()
    cpu_backend().set_threads(threads)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CupyBackend:
    """The stand-in as --device cuda: for tests that ask for a device by name."""
    if (reason := kernel_emulation.why_not()) is not None:
        pytest.skip(reason)
    monkeypatch.setitem(sys.modules, "cupy", strict_cupy)
    monkeypatch.setitem(sys.modules, "cupyx", strict_cupy.cupyx)
    monkeypatch.setattr(minicst.backend, "_cuda_backend", stand_in)
    return stand_in()


@pytest.fixture(autouse=True)
def fresh_probe() -> Iterator[None]:
    """A test with the stand-in in CuPy's place must not leave a GPU behind."""
    yield
    why_no_gpu.cache_clear()


@pytest.fixture(autouse=True)
def fresh_meter(device: str) -> None:
    """A backend is one per process, so its meter starts every test at zero."""
    for meter in (cpu_backend().meter, get_backend().meter):
        meter.phase = meter.layer = ""
        meter.reset()
