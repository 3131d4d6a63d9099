"""CIFAR ResNets: three stages of basic blocks, 16-32-64 channels.

Source: He et al., "Deep Residual Learning" (2016), Sec. 4.2. Shortcuts into a new stage are option
A (subsample, pad with zero channels) or B (1x1 convolution).

Maskable channels at a residual add, which the paper leaves open:
    tied         all writers of a stage's stream share one group, so that every convolution shrinks
                 on both sides, by rho^2
    independent  every convolution has its own group; a stream channel is live where any writer is
"""

from __future__ import annotations

import numpy as np

from minicst.models.vgg import classifier, scaled
from minicst.nn import INPUT, Add, GlobalPool, Network, Shortcut, Unit

BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet56": 9}  # blocks a stage: depth = 6 blocks + 2
STAGE_CHANNELS = (16, 32, 64)


def build_resnet(
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    linear_masks: str,
    residual: str,
    shortcut: str,
    rng: np.random.Generator,
) -> Network:
    """Build one of BLOCKS, channels times `width`."""
    network = Network(name, in_channels)
    tied = residual == "tied"
    c_in = scaled(STAGE_CHANNELS[0], width)
    stem_group = "stage1" if tied else "stem"
    stem = Unit.create(in_channels, c_in, 3, padding=1, group=stem_group, rng=rng)
    stream = network.add("stem", stem, INPUT)
    for stage, base in enumerate(STAGE_CHANNELS, 1):
        c_out = scaled(base, width)
        for block in range(1, BLOCKS[name] + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            at = f"stage{stage}.block{block}"
            stream_group = f"stage{stage}" if tied else None
            first = Unit.create(c_in, c_out, 3, stride, padding=1, group=f"{at}.conv1", rng=rng)
            second = Unit.create(
                *(c_out, c_out, 3, 1),
                padding=1,
                relu=False,
                group=stream_group or f"{at}.conv2",
                rng=rng,
            )
            branch = network.add(f"{at}.conv1", first, stream)
            branch = network.add(f"{at}.conv2", second, branch)
            if stride != 1 or c_in != c_out:
                short: Unit | Shortcut
                if shortcut == "B":
                    short = Unit.create(
                        *(c_in, c_out, 1, stride),
                        relu=False,
                        group=stream_group or f"{at}.shortcut",
                        rng=rng,
                    )
                else:
                    kept = list(range(c_in))
                    short = Shortcut(stride, c_out, kept, kept, stream_group)
                stream = network.add(f"{at}.shortcut", short, stream)
            stream = network.add(f"{at}.add", Add(c_out), branch, stream)
            c_in = c_out
    at = network.add("mean", GlobalPool(), stream)
    network.add("classifier", classifier(c_in, num_classes, linear_masks, rng), at)
    return network
