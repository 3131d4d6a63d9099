"""Networks by name, and how their maskable channels hang together.

A *unit* writes the channels of its *group*, and a group has one mask, whoever writes it:

    chain           every convolution has a group of its own (VGG, the first convolutions of a
                    residual branch)
    depthwise       a depthwise layer's filter c reads channel c alone: it has its producer's group
    residual add    the streams that meet at an add have the same number of channels. "independent":
                    each writer keeps its group, and a channel of the sum is live where *any* writer
                    is (the union). "tied": all writers of a stage's stream share one group, so that
                    the same channels are live in all of them
    linear weights  with linear_masks "weights", a linear layer's group has an entry for each of its
                    weights, none for its neurons, and the classifier has such a group too. A neuron
                    that no live weight joins to a live input, or to a live reader, is absent
    pre-activation  a norm on the stream has no mask of its own. A dead stream channel is 0 before
                    it and, as batch norm would turn 0 into beta, is kept 0 behind it

With tied groups each convolution shrinks on both sides: its multiply-adds fall as rho^2. With
independent ones a stream with w writers has the share 1 - (1 - rho)^w of its channels live: after a
few blocks it is nearly dense, and what a convolution that reads it costs falls as rho only.
`minicst graph NETWORK --keep-rate R` draws groups, unions and what is live under one mask.

Paper: Sec. 4.1, each filter F_c has a mask [eq2]; Discussion [fc-weights]
Differs: the paper doesn't say how masks meet at an add or in a depthwise layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minicst.models.imagenet_resnet import BOTTLENECKS, build_imagenet_resnet
from minicst.models.mobilenet import build_mobilenet
from minicst.models.resnet import BLOCKS, build_resnet
from minicst.models.vgg import VGG_LAYERS, build_mlp, build_vgg
from minicst.models.wide_resnet import WIDE_RESNETS, build_wide_resnet
from minicst.nn import Network
from minicst.randomness import rng_for

__all__ = ["ANY_SIZE", "ARCHITECTURES", "NETWORKS", "Architecture", "build"]


@dataclass(frozen=True)
class Architecture:
    """What is known of a network before it is built.

    Attributes:
        build: makes it from (name, num_classes, in_channels, width, linear_masks, ..., rng).
        takes: names of further arguments of `build`: residual, shortcut, image_size.
        image: (h, w, c) of the images that its published counts are for.
        num_classes: of its published counts.
        any_size: takes images of any size; else they are padded to `image`'s.
    """

    build: Callable[..., Network]
    takes: tuple[str, ...] = ()
    image: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    any_size: bool = False


_GREY, _IMAGENET = (28, 28, 1), {"image": (224, 224, 3), "num_classes": 1000, "any_size": True}
_OURS = ("vgg-tiny", "vgg-small")

ARCHITECTURES: dict[str, Architecture] = {
    # Five poolings need 32 pixels, and the CIFAR networks' counts are quoted for 32.
    **{
        name: Architecture(build_vgg, image=_GREY, any_size=True)
        if name in _OURS
        else Architecture(build_vgg)
        for name in VGG_LAYERS
    },
    **{name: Architecture(build_resnet, ("residual", "shortcut")) for name in BLOCKS},
    **{name: Architecture(build_wide_resnet, ("residual",)) for name in WIDE_RESNETS},
    **{
        name: Architecture(build_imagenet_resnet, ("residual",), **_IMAGENET)  # type: ignore[arg-type]
        for name in BOTTLENECKS
    },
    "mobilenetv1": Architecture(build_mobilenet, **_IMAGENET),  # type: ignore[arg-type]
    "mlp": Architecture(build_mlp, ("image_size",), image=_GREY, any_size=True),
}
NETWORKS = tuple(ARCHITECTURES)
ANY_SIZE = tuple(name for name, network in ARCHITECTURES.items() if network.any_size)


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    residual: str = "tied",
    shortcut: str = "B",
    image_size: int = 32,
    seed: int = 0,
    linear_masks: str = "channels",
) -> Network:
    """Build a network by name, weights drawn from `seed` (He normal), float32.

    Args:
        name: one of NETWORKS.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: multiplies every hidden channel count (rounded).
        residual: "tied" or "independent" masks at residual adds (ResNets).
        shortcut: "A" (pad) or "B" (1x1 convolution) into a new stage (CIFAR ResNets).
        image_size: side of the images; only the mlp depends on it.
        seed: of the weights.
        linear_masks: "channels": hidden linear layers have a mask for each neuron, the classifier
            none; "weights": every linear layer has one for each weight.

    Raises:
        ValueError: if a name or a number is impossible; names what came and the choices.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown network '{name}': choose one of {', '.join(NETWORKS)}")
    if residual not in ("tied", "independent"):
        raise ValueError(f"residual '{residual}': choose tied or independent")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut '{shortcut}': choose A (pad) or B (1x1 convolution)")
    if linear_masks not in ("channels", "weights"):
        raise ValueError(f"linear masks '{linear_masks}': choose channels or weights")
    if num_classes < 2 or in_channels < 1 or image_size < 1 or not 0 < width <= 64:
        raise ValueError(
            f"num_classes={num_classes}, in_channels={in_channels}, width={width}, "
            f"image_size={image_size}: at least 2 classes, 1 channel, 1 pixel and a width in "
            "(0, 64] are needed"
        )
    architecture = ARCHITECTURES[name]
    if shortcut != "B" and "shortcut" not in architecture.takes:
        raise ValueError(f"shortcut '{shortcut}': {name} can't pad its shortcuts, leave it out")
    offered: dict[str, Any] = {
        "residual": residual,
        "shortcut": shortcut,
        "image_size": image_size,
    }
    return architecture.build(
        name=name,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        linear_masks=linear_masks,
        rng=rng_for(seed, "init", name),
        **{key: offered[key] for key in architecture.takes},
    )
