"""Noise that can be planted in a unit's channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.randomness import rng_for


class ChannelNoise:
    """Planted structure: in some channels, batch norm's output is replaced by noise.

    The noise is N(0, 1), keyed by (seed, step, layer, channel): the same in both passes of a step,
    in the masked and in the cut form. No gradient passes a noisy channel.

    Args:
        seed: of the noise.
        layer: name that keys it.
        bad: (c,) bool, the noisy channels.
        channels: (c,) numbers of these channels in the full network.
    """

    def __init__(self, seed: int, layer: str, bad: Any, channels: Any) -> None:
        self.seed, self.layer = seed, layer
        self.bad, self.channels = np.asarray(bad, bool), np.asarray(channels, np.intp)

    def __call__(self, z: Tensor, step: int, live: np.ndarray | None) -> Tensor:
        """Replace the noisy channels of z (n, h, w, c); absent channels, by `live`, stay 0."""
        noise = np.zeros(z.shape, z.dtype)
        for i in np.flatnonzero(self.bad):
            if live is None or live[i]:
                rng = rng_for(self.seed, "noise", step, self.layer, int(self.channels[i]))
                noise[..., i] = rng.standard_normal(z.shape[:-1], np.float32)
        return z * (~self.bad).astype(z.dtype) + noise

    def narrow(self, keep: np.ndarray) -> ChannelNoise:
        """Return the same noise for the kept channels."""
        return ChannelNoise(self.seed, self.layer, self.bad[keep], self.channels[keep])

    def config(self) -> dict[str, Any]:
        """Arguments as plain data."""
        return {
            "seed": self.seed,
            "layer": self.layer,
            "bad": self.bad.tolist(),
            "channels": self.channels.tolist(),
        }
