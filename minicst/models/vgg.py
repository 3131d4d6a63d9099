"""VGG-style chains, the fully connected network of the paper's Figure 1, and every classifier.

Every unit has a group of its own: a chain can be cut anywhere.
Source: Simonyan and Zisserman (2015), with batch norm and one linear layer on 512 averaged
features, as is usual for 32x32 images.
"""

from __future__ import annotations

import numpy as np

from minicst.nn import INPUT, Flatten, GlobalPool, Network, Pool, Unit

# Numbers are filters of 3x3 convolutions, "M" is 2x2 max pooling.
VGG_LAYERS: dict[str, tuple[int | str, ...]] = {
    # Ours. vgg-small: some thirteen steps per maskable channel in a minute on two cores.
    "vgg-tiny": (16, 32, "M", 32),
    "vgg-small": (32, "M", 48, "M", 64),
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (
        *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
        *(512, 512, 512, "M", 512, 512, 512, "M"),
    ),
    "vgg19": (
        *(64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"),
        *(512, 512, 512, 512, "M", 512, 512, 512, 512, "M"),
    ),
}

MLP_NEURONS = (64, 64)


def build_vgg(
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    linear_masks: str,
    rng: np.random.Generator,
) -> Network:
    """Build one of VGG_LAYERS, filters times `width`."""
    network = Network(name, in_channels)
    at, c_in, n_conv, n_pool = INPUT, in_channels, 0, 0
    for layer in VGG_LAYERS[name]:
        if layer == "M":
            n_pool += 1
            at = network.add(f"pool{n_pool}", Pool("max", 2), at)
            continue
        n_conv += 1
        c_out = scaled(int(layer), width)
        unit = Unit.create(c_in, c_out, 3, padding=1, group=f"conv{n_conv}", rng=rng)
        at = network.add(f"conv{n_conv}", unit, at)
        c_in = c_out
    at = network.add("mean", GlobalPool(), at)
    network.add("classifier", classifier(c_in, num_classes, linear_masks, rng), at)
    return network


def build_mlp(
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    linear_masks: str,
    image_size: int,
    rng: np.random.Generator,
) -> Network:
    """Build two hidden layers of maskable neurons, the paper's Figure 1 with batch norm.

    With linear_masks "weights", of maskable weights instead.
    """
    network = Network(name, in_channels)
    pixels = image_size**2
    at, c_in = network.add("flatten", Flatten(pixels), INPUT), pixels * in_channels
    for i, neurons in enumerate(MLP_NEURONS, 1):
        c_out = scaled(neurons, width)
        unit = Unit.create(c_in, c_out, group=f"fc{i}", mask_on=linear_masks, rng=rng)
        at = network.add(f"fc{i}", unit, at)
        c_in = c_out
    network.add("classifier", classifier(c_in, num_classes, linear_masks, rng), at)
    return network


def classifier(c_in: int, num_classes: int, linear_masks: str, rng: np.random.Generator) -> Unit:
    """Build the linear layer on top, without batch norm.

    No mask on its neurons, which are the classes; with linear_masks "weights" one on each weight.
    """
    masks = {"group": "classifier", "mask_on": "weights"} if linear_masks == "weights" else {}
    plain = {"bias": True, "norm": False, "relu": False, "rng": rng}
    return Unit.create(c_in, num_classes, **plain, **masks)  # type: ignore[arg-type]


def scaled(channels: int, width: float) -> int:
    """Return channels times width, rounded, at least 1."""
    return max(1, round(channels * width))
