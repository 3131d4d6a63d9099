"""ResNet-50 for images of 224x224: four stages of bottleneck blocks.

A block is 1x1 -> 3x3 -> 1x1 convolution, the last four times as wide. A new stage's stride is in
the 3x3, as in the implementations whose accuracies are quoted today (6 % more multiply-adds than
with the stride in the first 1x1, as first published); shortcuts into it are 1x1 convolutions.

Source: He et al., "Deep Residual Learning" (2016), Table 1.
"""

from __future__ import annotations

import numpy as np

from minicst.models.vgg import classifier, scaled
from minicst.nn import INPUT, Add, GlobalPool, Network, Pool, Unit

BOTTLENECKS = {"resnet50": (3, 4, 6, 3)}  # blocks of each stage
STEM_CHANNELS = 64
STAGE_CHANNELS = (64, 128, 256, 512)
EXPANSION = 4


def build_imagenet_resnet(
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    linear_masks: str,
    residual: str,
    rng: np.random.Generator,
) -> Network:
    """Build one of BOTTLENECKS, channels times `width`."""
    network = Network(name, in_channels)
    tied = residual == "tied"
    c_in = scaled(STEM_CHANNELS, width)
    stem = Unit.create(in_channels, c_in, 7, 2, padding=3, group="stem", rng=rng)
    stream = network.add("stem", stem, INPUT)
    stream = network.add("pool", Pool("max", 3, 2, 1), stream)
    for stage, (base, blocks) in enumerate(zip(STAGE_CHANNELS, BOTTLENECKS[name], strict=True), 1):
        narrow, c_out = scaled(base, width), scaled(base * EXPANSION, width)
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            at = f"stage{stage}.block{block}"
            first = Unit.create(c_in, narrow, 1, group=f"{at}.conv1", rng=rng)
            second = Unit.create(narrow, narrow, 3, stride, padding=1, group=f"{at}.conv2", rng=rng)
            group = f"stage{stage}" if tied else f"{at}.conv3"
            third = Unit.create(narrow, c_out, 1, relu=False, group=group, rng=rng)
            branch = network.add(f"{at}.conv1", first, stream)
            branch = network.add(f"{at}.conv2", second, branch)
            branch = network.add(f"{at}.conv3", third, branch)
            if block == 1:
                group = f"stage{stage}" if tied else f"{at}.shortcut"
                short = Unit.create(c_in, c_out, 1, stride, relu=False, group=group, rng=rng)
                stream = network.add(f"{at}.shortcut", short, stream)
            stream = network.add(f"{at}.add", Add(c_out), branch, stream)
            c_in = c_out
    at = network.add("mean", GlobalPool(), stream)
    network.add("classifier", classifier(c_in, num_classes, linear_masks, rng), at)
    return network
