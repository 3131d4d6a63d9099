"""MobileNetV1: a chain of depthwise 3x3 and pointwise 1x1 convolutions.

A depthwise filter reads one channel and writes one, so that it shares its producer's group: where a
channel is absent, its depthwise filter is too, and one mask decides for both.

Source: Howard et al., "MobileNets" (2017), Table 1.
"""

from __future__ import annotations

import numpy as np

from minicst.models.vgg import classifier, scaled
from minicst.nn import INPUT, GlobalPool, Network, Unit

STEM_CHANNELS = 32
# (filters of the pointwise convolution, stride of the depthwise one before it)
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


def build_mobilenet(
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    linear_masks: str,
    rng: np.random.Generator,
) -> Network:
    """Build the network, channels times `width`."""
    network = Network(name, in_channels)
    c_in, group = scaled(STEM_CHANNELS, width), "stem"
    stem = Unit.create(in_channels, c_in, 3, 2, padding=1, group=group, rng=rng)
    at = network.add("stem", stem, INPUT)
    for block, (filters, stride) in enumerate(BLOCKS, 1):
        depthwise = Unit.create(c_in, c_in, 3, stride, padding=1, groups=c_in, group=group, rng=rng)
        at = network.add(f"block{block}.depthwise", depthwise, at)
        c_out, group = scaled(filters, width), f"block{block}"
        pointwise = Unit.create(c_in, c_out, 1, group=group, rng=rng)
        at = network.add(f"block{block}.pointwise", pointwise, at)
        c_in = c_out
    at = network.add("mean", GlobalPool(), at)
    network.add("classifier", classifier(c_in, num_classes, linear_masks, rng), at)
    return network
