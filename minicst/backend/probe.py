"""Whether a GPU can be used, and if not, why and what to do. CuPy is imported on the first call."""

from __future__ import annotations

from functools import lru_cache


class Unusable(ValueError):
    """No GPU can be used; the message says why and what to do."""


@lru_cache(maxsize=1)
def why_no_gpu() -> str | None:
    """Say why no GPU can be used, and the way out; None if one can.

    Told apart: CuPy can't be imported; there is no driver; the driver shows no device; there is a
    device, but a small kernel and a small product on it fail.
    """
    # Broken installations end in ImportError, RuntimeError and others.
    try:
        import cupy
    except ImportError as error:
        if error.name == "cupy":
            return (
                "CuPy isn't installed; install minicst[cuda13] or, for a CUDA 12 driver, "
                "minicst[cuda12]"
            )
        return _broken(error)
    except Exception as error:
        return _broken(error)
    try:
        driver = cupy.cuda.runtime.driverGetVersion()
    except Exception as error:
        return f"CuPy can't ask the driver ({_said(error)}); reinstall the NVIDIA driver"
    if driver == 0:
        return "CuPy is installed, but there is no NVIDIA driver; install it, as nvidia-smi tells"
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return _no_device(_said(error))
    if devices == 0:
        return _no_device("0 devices")
    try:
        x = cupy.arange(4, dtype=cupy.float32).reshape(2, 2)
        answer = float((x @ (x + 1)).sum())  # a compiled kernel, a product, a read
    except Exception as error:
        return (
            f"there is a device, but a small kernel and product on it fail ({_said(error)}); "
            "install CUDA's libraries with minicst[cuda13] or minicst[cuda12], whichever the "
            "driver supports"
        )
    if answer != 28.0:
        return (
            f"there is a device, but a 2x2 product on it gives {answer} in place of 28; look for "
            "hardware errors with nvidia-smi -q"
        )
    return None


def _broken(error: Exception) -> str:
    return (
        f"CuPy is installed and can't be imported ({_said(error)}); keep one of cupy-cuda12x and "
        "cupy-cuda13x, the one of the driver, and install it again"
    )


def _no_device(said: str) -> str:
    return (
        f"there is a driver, but no CUDA device is visible ({said}); look at nvidia-smi and "
        "CUDA_VISIBLE_DEVICES"
    )


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
