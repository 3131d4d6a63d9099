"""Networks by name."""

from __future__ import annotations

from minicst.models.resnet import BLOCKS, build_resnet
from minicst.models.vgg import VGG_LAYERS, build_mlp, build_vgg
from minicst.nn import Network
from minicst.randomness import rng_for

NETWORKS = (*VGG_LAYERS, *BLOCKS, "mlp")
# Five poolings need 32 pixels, and the ResNets' counts are quoted for 32. These take any images:
ANY_SIZE = ("vgg-tiny", "vgg-small", "mlp")

__all__ = ["ANY_SIZE", "NETWORKS", "build"]


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    residual: str = "tied",
    shortcut: str = "B",
    image_size: int = 32,
    seed: int = 0,
) -> Network:
    """Build a network by name, weights drawn from `seed` (He normal), float32.

    Args:
        name: one of NETWORKS.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: multiplies every hidden channel count (rounded).
        residual: "tied" or "independent" masks at residual adds (ResNets).
        shortcut: "A" (pad) or "B" (1x1 convolution) into a new stage (ResNets).
        image_size: side of the images; only the mlp depends on it.
        seed: of the weights.

    Raises:
        ValueError: if a name or a number is impossible; names what came and the choices.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network '{name}': choose one of {', '.join(NETWORKS)}")
    if residual not in ("tied", "independent"):
        raise ValueError(f"residual '{residual}': choose tied or independent")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut '{shortcut}': choose A (pad) or B (1x1 convolution)")
    if num_classes < 2 or in_channels < 1 or image_size < 1 or not 0 < width <= 64:
        raise ValueError(
            f"num_classes={num_classes}, in_channels={in_channels}, width={width}, "
            f"image_size={image_size}: at least 2 classes, 1 channel, 1 pixel and a width in "
            "(0, 64] are needed"
        )
    rng = rng_for(seed, "init", name)
    if name == "mlp":
        return build_mlp(num_classes, in_channels, width, image_size, rng)
    if name in VGG_LAYERS:
        return build_vgg(name, num_classes, in_channels, width, rng)
    return build_resnet(name, num_classes, in_channels, width, residual, shortcut, rng)
