"""Wide residual networks: three stages of pre-activation blocks, 16 k - 32 k - 64 k channels.

A block is norm -> convolution -> norm -> convolution, added to the stream as it came in; nothing
clips the stream itself. Where a stage begins, block and 1x1 shortcut both read the first norm.

Source: Zagoruyko and Komodakis, "Wide Residual Networks" (2016), Table 1, no dropout.
"""

from __future__ import annotations

import numpy as np

from minicst.models.vgg import classifier, scaled
from minicst.nn import INPUT, Add, GlobalPool, Network, Norm, Unit

WIDE_RESNETS = {"wrn-28-10": (28, 10)}  # depth = 6 blocks + 4, widening factor k
STEM_CHANNELS = 16
STAGE_CHANNELS = (16, 32, 64)


def build_wide_resnet(
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    linear_masks: str,
    residual: str,
    rng: np.random.Generator,
) -> Network:
    """Build one of WIDE_RESNETS, channels times `width`."""
    depth, widening = WIDE_RESNETS[name]
    network = Network(name, in_channels)
    tied = residual == "tied"

    def convolution(c_in: int, c_out: int, kernel: int, stride: int, group: str) -> Unit:
        """A convolution that writes a stream: the norm that follows it is the reader's."""
        plain = {"norm": False, "relu": False, "group": group, "rng": rng}
        return Unit.create(c_in, c_out, kernel, stride, padding=kernel // 2, **plain)  # type: ignore[arg-type]

    c_in = scaled(STEM_CHANNELS, width)
    stream = network.add("stem", convolution(in_channels, c_in, 3, 1, "stem"), INPUT)
    for stage, base in enumerate(STAGE_CHANNELS, 1):
        c_out = scaled(base * widening, width)
        for block in range(1, (depth - 4) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            at = f"stage{stage}.block{block}"
            normed = network.add(f"{at}.norm", Norm(c_in), stream)
            first = Unit.create(c_in, c_out, 3, stride, padding=1, group=f"{at}.conv1", rng=rng)
            branch = network.add(f"{at}.conv1", first, normed)
            group = f"stage{stage}" if tied else f"{at}.conv2"
            branch = network.add(f"{at}.conv2", convolution(c_out, c_out, 3, 1, group), branch)
            if block == 1:
                group = f"stage{stage}" if tied else f"{at}.shortcut"
                short = convolution(c_in, c_out, 1, stride, group)
                stream = network.add(f"{at}.shortcut", short, normed)
            stream = network.add(f"{at}.add", Add(c_out, relu=False), branch, stream)
            c_in = c_out
    at = network.add("norm", Norm(c_in), stream)
    at = network.add("mean", GlobalPool(), at)
    network.add("classifier", classifier(c_in, num_classes, linear_masks, rng), at)
    return network
