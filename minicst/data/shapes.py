"""A synthetic data set: colored shapes and patterns, 32x32x3, in ten classes."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from minicst.randomness import rng_for

SIZE = 32
CLASS_NAMES = (
    "disc",
    "square",
    "triangle",
    "ring",
    "cross",
    "star",
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "checkerboard",
)

_Floats = npt.NDArray[np.float64]

# Radians that each class may turn by; stripes turn little, because direction is their class.
_TURN = (0.0, 0.35, 0.35, 0.0, 0.35, 0.35, 0.1, 0.1, 0.1, 0.1)


@lru_cache(maxsize=2)
def make_shapes(
    train_per_class: int = 200, test_per_class: int = 50, seed: int = 0
) -> tuple[
    npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int64]
]:
    """Draw the data set, or give back the one drawn before.

    Every image shows one shape or patterned patch with random place, size, turn, foreground and
    background color, brightness gradient and pixel noise. Colors are drawn alike for all classes
    and either of the two may be the brighter one, so color says nothing about the class.

    Args:
        train_per_class: Training images of each class, at least 1.
        test_per_class: Test images of each class, at least 1.
        seed: Seed of all draws, 0..2**64-1.

    Returns:
        Training images uint8 (n, 32, 32, 3), training labels int64 (n,), and test images and
        labels likewise; classes in `CLASS_NAMES`, in mixed order. The arrays are read-only.

    Raises:
        ValueError: A count is below 1, or the seed is out of range.
    """
    if train_per_class < 1 or test_per_class < 1:
        raise ValueError(
            f"images per class must be at least 1, got {train_per_class} and {test_per_class}"
        )
    train_images, train_labels = _split(train_per_class, seed, "train")
    test_images, test_labels = _split(test_per_class, seed, "test")
    for array in (train_images, train_labels, test_images, test_labels):
        array.flags.writeable = False
    return train_images, train_labels, test_images, test_labels


def _split(
    per_class: int, seed: int, split: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    classes = len(CLASS_NAMES)
    images = np.concatenate(
        [
            _draw(label, per_class, rng_for(seed, "shapes32", split, label))
            for label in range(classes)
        ]
    )
    labels = np.repeat(np.arange(classes, dtype=np.int64), per_class)
    order = rng_for(seed, "shapes32", split, "order").permutation(len(labels))
    return images[order], labels[order]


def _draw(label: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    column = (count, 1, 1)
    radius = rng.uniform(7.0, 12.0, column)
    reach = SIZE / 2 - radius + 1.0  # The shape may leave the image by about a pixel.
    center_x = SIZE / 2 + reach * rng.uniform(-1.0, 1.0, column)
    center_y = SIZE / 2 + reach * rng.uniform(-1.0, 1.0, column)
    turn = _TURN[label] * rng.uniform(-1.0, 1.0, column)

    pixels = np.arange(SIZE) + 0.5
    dx, dy = pixels[None, None, :] - center_x, pixels[None, :, None] - center_y
    u = np.cos(turn) * dx + np.sin(turn) * dy
    v = np.cos(turn) * dy - np.sin(turn) * dx
    # A ramp one pixel wide at the edge is a cheap antialiasing.
    coverage = np.clip(0.5 - _distance(label, u, v, radius, rng), 0.0, 1.0)[..., None]

    background = rng.uniform(0.1, 0.9, (count, 1, 1, 3))
    foreground = rng.uniform(0.1, 0.9, (count, 1, 1, 3))
    close = np.linalg.norm(foreground - background, axis=3, keepdims=True) < 0.45
    # Half a turn around the color cube is at least 0.69 away, which needs no second draw.
    foreground = np.where(close, 0.1 + (background - 0.1 + 0.4) % 0.8, foreground)

    slope = rng.uniform(-0.15, 0.15, (2, *column))
    light = (slope[0] * (pixels[None, None, :] / SIZE - 0.5)) + (
        slope[1] * (pixels[None, :, None] / SIZE - 0.5)
    )
    sigma = rng.uniform(0.01, 0.07, (count, 1, 1, 1))
    noise = rng.standard_normal((count, SIZE, SIZE, 3), dtype=np.float32)
    image = background + (foreground - background) * coverage + light[..., None] + sigma * noise
    return np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _distance(
    label: int, u: _Floats, v: _Floats, radius: _Floats, rng: np.random.Generator
) -> _Floats:
    """Return the distance in pixels to a shape's edge, negative inside, (n, 32, 32).

    Distances are exact at straight edges and near enough elsewhere for a one-pixel ramp.
    """
    name = CLASS_NAMES[label]
    rho = np.hypot(u, v)
    if name == "disc":
        return rho - radius
    if name == "ring":
        return np.abs(rho - 0.78 * radius) - 0.22 * radius
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.85 * radius
    if name == "triangle":
        sides = np.maximum(v, np.sqrt(0.75) * np.abs(u) - 0.5 * v)
        return sides - 0.58 * radius
    if name == "cross":
        arm = 0.3 * radius
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - radius, b - arm), np.maximum(a - arm, b - radius))
    if name == "star":
        return _star(u, v, rho, 1.1 * radius)
    return np.maximum(rho - 1.1 * radius, _pattern(name, u, v, rng))


def _star(u: _Floats, v: _Floats, rho: _Floats, radius: _Floats) -> _Floats:
    # Folding the plane into one tenth turns the five points into a single straight edge, from
    # the tip on the axis to the notch at 36 degrees.
    sector = 2.0 * np.pi / 5.0
    angle = np.arctan2(u, -v)
    angle = np.abs((angle + sector / 2.0) % sector - sector / 2.0)
    x, y = rho * np.cos(angle), rho * np.sin(angle)
    notch = 0.42 * radius
    edge_x, edge_y = notch * np.cos(sector / 2.0) - radius, notch * np.sin(sector / 2.0)
    return ((x - radius) * edge_y - y * edge_x) / np.hypot(edge_x, edge_y)


def _pattern(name: str, u: _Floats, v: _Floats, rng: np.random.Generator) -> _Floats:
    column = (len(u), 1, 1)
    width = rng.uniform(2.0, 3.2, column)  # Of one stripe or one cell, in pixels.
    phase_u, phase_v = rng.uniform(0.0, 2.0, (2, *column))
    if name == "diagonal stripes":
        side = np.where(rng.random(column) < 0.5, 1.0, -1.0)
        return _stripes((u + side * v) * np.sqrt(0.5), width, phase_u)
    if name == "horizontal stripes":
        return _stripes(v, width, phase_v)
    if name == "vertical stripes":
        return _stripes(u, width, phase_u)
    width = 1.3 * width
    across, down = _stripes(u, width, phase_u), _stripes(v, width, phase_v)
    # Inside a cell where exactly one of the two stripe systems is inside.
    return np.maximum(np.minimum(across, down), -np.maximum(across, down))


def _stripes(position: _Floats, width: _Floats, phase: _Floats) -> _Floats:
    """Return the distance to the edge of stripes as wide as their gaps, negative inside."""
    place = (position / width + phase) % 2.0
    return (np.abs(place - 1.0) - 0.5) * width
