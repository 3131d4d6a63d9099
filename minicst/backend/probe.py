"""Whether a GPU can be used, and if not, why and what to do. CuPy is imported on the first call."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

LONGEST = 200  # characters of an error's own words: a compiler's may be pages
CONTAINER = "in a container, start it with its GPUs (docker run --gpus all)"


class Unusable(ValueError):
    """No GPU can be used; the message says why and what to do."""


@lru_cache(maxsize=1)
def why_no_gpu() -> str | None:
    """Say why no GPU can be used, and the way out; None if one can.

    Told apart: CuPy isn't installed; it can't be imported; there is no driver; it is too old for
    CuPy; it shows no device; there is a device, but a small kernel and a small product on it fail,
    or give a wrong answer.
    """
    # Broken installations end in ImportError, RuntimeError, AttributeError and others.
    try:
        import cupy

        runtime = cupy.cuda.runtime  # a folder "cupy" left behind imports too, without this
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return (
                "CuPy isn't installed; install minicst[cuda13] for a driver of CUDA 13, "
                "minicst[cuda12] for one of CUDA 12 (nvidia-smi shows which)"
            )
        return _broken(error)
    except Exception as error:
        return _broken(error)
    return _no_device(runtime) or _no_answer(cupy)


def _broken(error: Exception) -> str:
    return (
        f"CuPy is installed and can't be imported ({_said(error)}); uninstall every cupy package "
        "(pip list shows them) and install one again: minicst[cuda13] or minicst[cuda12], "
        "whichever the driver supports"
    )


def _no_device(runtime: Any) -> str | None:
    """Ask the driver; None if it shows a device."""
    try:
        driver = int(runtime.driverGetVersion())
    except Exception as error:
        return f"CuPy can't ask the NVIDIA driver ({_said(error)}); reinstall the driver"
    if driver == 0:
        return (
            "CuPy is installed, but there is no NVIDIA driver; install one, until nvidia-smi lists "
            f"the card; {CONTAINER}"
        )
    try:
        if runtime.getDeviceCount() > 0:
            return None
        said = "0 devices"
    except Exception as error:
        said = _said(error)
    if "InsufficientDriver" in said:
        return (
            f"the NVIDIA driver, of CUDA {driver // 1000}.{driver % 1000 // 10}, is too old for "
            f"the installed CuPy ({said}); update the driver, or for one of CUDA 12 install "
            "minicst[cuda12] in place of minicst[cuda13]"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        way_out = f"CUDA_VISIBLE_DEVICES is '{visible}': unset it, or set it to the card's number"
    else:
        way_out = f"nvidia-smi must list the card; {CONTAINER}"
    return f"there is a driver, but no CUDA device is visible ({said}); {way_out}"


def _no_answer(cupy: Any) -> str | None:
    """Let the device compile, multiply and answer; None if it does."""
    try:
        x = cupy.arange(4, dtype=cupy.float32).reshape(2, 2)
        # A compiled kernel, a product, a read: [[0 1] [2 3]] @ [[1 2] [3 4]] = [[3 4] [11 16]].
        answer = float((x @ (x + 1)).sum())
    except Exception as error:
        said = _said(error)
        if isinstance(error, MemoryError) or "MemoryAllocation" in said or "Unavailable" in said:
            way_out = (
                "other programs have taken it: nvidia-smi lists them, CUDA_VISIBLE_DEVICES chooses "
                "another card"
            )
        elif "NoKernelImage" in said or "no kernel image" in said:
            way_out = "the card is too old (or too new) for this CuPy: use another card or CuPy"
        else:
            way_out = (
                "a library of CUDA may be missing: install minicst[cuda13] or minicst[cuda12], "
                "whichever the driver supports, which bring them"
            )
        return f"there is a device, but a small kernel and product on it fail ({said}); {way_out}"
    if answer != 34.0:
        return (
            f"there is a device, but a 2x2 product on it gives {answer} in place of 34; look for "
            "hardware errors with nvidia-smi -q"
        )
    return None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
