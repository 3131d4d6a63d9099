"""Why a GPU can't be used: each reason told apart, by modules cupy that are broken in a way."""

import builtins
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import minicst.backend
from minicst.backend import cpu_backend, get_backend, why_no_gpu
from minicst.backend.probe import LONGEST


class CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


def raises(error):
    def ask(*_, **__):
        raise error

    return ask


def fake(driver=13000, devices=1, arange=np.arange):
    """A module cupy, as far as the probe asks: functions or what they return."""
    module = ModuleType("cupy")
    runtime = {"driverGetVersion": driver, "getDeviceCount": devices}
    calls = {k: v if callable(v) else (lambda v=v: v) for k, v in runtime.items()}
    module.cuda = SimpleNamespace(runtime=SimpleNamespace(**calls))
    module.arange, module.float32 = arange, np.float32
    return module


class Wrong:
    """Multiplies, and gets another number."""

    def reshape(self, *_):
        return self

    def __add__(self, _):
        return self

    def __matmul__(self, _):
        return SimpleNamespace(sum=lambda: 27.0)


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    """Answers are kept for the process: forgotten before and after."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    why_no_gpu.cache_clear()
    minicst.backend._cuda_backend.cache_clear()
    yield
    why_no_gpu.cache_clear()
    minicst.backend._cuda_backend.cache_clear()


def reason(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "cupy", module)
    said = why_no_gpu()
    if said is not None:
        assert "\n" not in said
        assert "  " not in said
        assert not said.endswith(".")
    return said


def import_ends_in(monkeypatch, error):
    real = builtins.__import__

    def importing(name, *rest):
        if name == "cupy":
            raise error
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(builtins, "__import__", importing)
    said = why_no_gpu()
    monkeypatch.setattr(builtins, "__import__", real)
    return said


def test_a_device_that_answers_is_usable(monkeypatch):
    assert reason(monkeypatch, fake()) is None


def test_no_cupy(monkeypatch):
    said = reason(monkeypatch, None)  # what Python takes for: there is no such module
    assert said.startswith("CuPy isn't installed; ")
    for way_out in ("minicst[cuda12]", "minicst[cuda13]", "nvidia-smi"):
        assert way_out in said


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcudart.so.13: cannot open shared object file"),
        ImportError("cannot import name '_core' from 'cupy'", name="cupy"),
        ModuleNotFoundError("No module named 'cupy_backends'", name="cupy_backends"),
        RuntimeError("two CuPy packages\nare installed"),
        OSError("libc10.so"),
        AttributeError("module 'numpy' has no attribute 'x'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_broken_cupy(error, monkeypatch):
    said = import_ends_in(monkeypatch, error)
    assert said.startswith(f"CuPy is installed and can't be imported ({type(error).__name__}: ")
    assert " ".join(str(error).split()) in said
    assert "uninstall every cupy package" in said


def test_an_empty_folder_named_cupy_is_broken(monkeypatch):
    said = reason(monkeypatch, ModuleType("cupy"))
    assert said.startswith("CuPy is installed and can't be imported (AttributeError")


def test_no_driver(monkeypatch):
    said = reason(monkeypatch, fake(driver=0))
    assert said.startswith("CuPy is installed, but there is no NVIDIA driver; ")
    assert "--gpus all" in said


def test_a_driver_that_does_not_answer(monkeypatch):
    said = reason(monkeypatch, fake(driver=raises(CUDARuntimeError("cudaErrorUnknown"))))
    assert said.startswith("CuPy can't ask the NVIDIA driver (CUDARuntimeError: cudaErrorUnknown)")


def test_a_driver_that_is_too_old(monkeypatch):
    error = CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    said = reason(monkeypatch, fake(driver=12040, devices=raises(error)))
    assert said.startswith("the NVIDIA driver, of CUDA 12.4, is too old for the installed CuPy (")
    assert "minicst[cuda12] in place of minicst[cuda13]" in said


@pytest.mark.parametrize(
    "devices", [0, raises(CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device"))]
)
def test_no_device(devices, monkeypatch):
    said = reason(monkeypatch, fake(devices=devices))
    assert said.startswith("there is a driver, but no CUDA device is visible (")
    assert "nvidia-smi" in said
    why_no_gpu.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "CUDA_VISIBLE_DEVICES is '7': unset it" in reason(monkeypatch, fake(devices=devices))


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (RuntimeError("DynamicLibNotFoundError: libnvrtc.so"), "library of CUDA may be missing"),
        (ImportError("libcublas.so.13: cannot open"), "library of CUDA may be missing"),
        (OutOfMemoryError("Out of memory allocating 512 bytes"), "other programs have taken it"),
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), "other programs"),
        (CUDARuntimeError("cudaErrorDevicesUnavailable: busy"), "other programs"),
        (CUDARuntimeError("cudaErrorNoKernelImageForDevice: no kernel image"), "too old"),
    ],
)
def test_a_device_that_does_not_answer(error, way_out, monkeypatch):
    said = reason(monkeypatch, fake(arange=raises(error)))
    assert said.startswith(
        "there is a device, but a small kernel and product on it fail "
        f"({type(error).__name__}: {error}); "
    )
    assert way_out in said


def test_a_long_error_is_cut_short(monkeypatch):
    said = reason(monkeypatch, fake(arange=raises(RuntimeError("source line\n" * 1000))))
    assert len(said) < LONGEST + 300
    assert "..." in said


def test_a_wrong_answer(monkeypatch):
    said = reason(monkeypatch, fake(arange=lambda *_, **__: Wrong()))
    assert said.startswith("there is a device, but a 2x2 product on it gives 27.0 in place of 34; ")


def test_asked_for_by_name_the_reason_is_the_error_and_auto_takes_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake(driver=0))
    with pytest.raises(ValueError, match=r"^device 'cuda' can't be used: .* no NVIDIA driver"):
        get_backend("cuda")
    assert get_backend("auto") is cpu_backend()


def test_the_answer_is_kept(monkeypatch):
    assert "no NVIDIA driver" in reason(monkeypatch, fake(driver=0))
    assert "no NVIDIA driver" in reason(monkeypatch, fake())


def test_cupy_is_imported_by_nobody_but_the_probe(tmp_path):
    """With a cupy that can't be imported: all of minicst is, and `info` says it."""
    asked = tmp_path / "asked"  # by whom ever, and whatever they make of the error
    stub = f"open({str(asked)!r}, 'a').close()\nraise SystemError('cupy was imported')\n"
    (tmp_path / "cupy.py").write_text(stub)
    code = f"""
import importlib, pathlib, pkgutil, sys
sys.path.insert(0, {str(tmp_path)!r})
import minicst
for module in pkgutil.walk_packages(minicst.__path__, "minicst."):
    if not module.name.endswith(("__main__", "torch_peer", "jax_peer")):
        importlib.import_module(module.name)
from minicst.backend import get_backend
get_backend("cpu"), get_backend()
from minicst.cli import main
main(["macs", "vgg-tiny", "--json"])
assert not pathlib.Path({str(asked)!r}).exists()
main(["info"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert asked.exists()
    shown = " ".join(done.stdout.split())
    assert "CuPy is installed and can't be imported (SystemError: cupy was imported)" in shown
