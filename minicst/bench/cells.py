"""What the tables of a bench write in their cells and heads."""

from __future__ import annotations

from minicst.bench.dense import OWN

TITLES = {
    OWN: "minicst",
    "pytorch-nchw": "PyTorch\nNCHW",
    "pytorch-channels-last": "PyTorch\nchannels last",
    "jax": "JAX",
}


def ms(seconds: float) -> str:
    """Milliseconds, whole ones above 100."""
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"
