"""Random crops and horizontal flips of raw images."""

import math

import numpy as np
import numpy.typing as npt


def crop_padding(size: int) -> int:
    """Return the zero padding, in pixels a side, that `crop_flip` gives an axis of this size.

    It is `max(1, size // 8)`: 4 for 32 pixels, 3 for 28, 1 for 8.
    """
    return max(1, size // 8)


def crop_flip(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Zero-pad, crop back to size at a random place, and flip left to right half of the time.

    For each image, in this order over the whole batch: row offsets, column offsets (uniform in
    0..2 * `crop_padding(size)`), then flips (probability one half).

    Args:
        images: Raw pixels, (n, h, w, c). They are not changed.
        rng: Source of the random draws.

    Returns:
        A new array of the same shape and dtype.
    """
    count, height, width, _ = images.shape
    pad_h, pad_w = crop_padding(height), crop_padding(width)
    top = rng.integers(0, 2 * pad_h + 1, size=(count, 1))
    left = rng.integers(0, 2 * pad_w + 1, size=(count, 1))
    flip = rng.integers(0, 2, size=(count, 1)) == 1

    padded = np.pad(images, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    rows = top + np.arange(height)
    columns = np.arange(width)
    # Reading the columns backwards is the flip, so crop and flip cost one gather.
    columns = left + np.where(flip, columns[::-1], columns)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


# Share of the area and ratio of width to height of a random-resized crop: Szegedy et al. 2015,
# "Going deeper with convolutions", section 6; ten tries, then the middle, as torchvision does.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


def draw_crop(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], bool]:
    """Draw all that a random-resized crop needs, before the size of the image is known.

    So a stream gives the same crop whatever happened to the files that were tried before.

    Returns:
        Uniform numbers in [0, 1), (10, 4), for `crop_box`; and whether to flip, one half.
    """
    return rng.random((CROP_TRIES, 4)), bool(rng.random() < 0.5)


def crop_box(width: int, height: int, tries: npt.NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Return the box of a random-resized crop.

    A try (a, r, x, y) asks for the area A = width height (0.08 + 0.92 a) and the ratio
    q = (3/4) (16/9)^r of width to height, so log q is uniform: w = round(√(A q)),
    h = round(√(A / q)). The first try with 1 <= w <= width and 1 <= h <= height is taken, its left
    edge uniform in 0..width - w, its upper edge in 0..height - h. If none fits: the largest box
    in the middle whose ratio lies in 3/4..4/3.

    Args:
        width: Of the image, in pixels, at least 1.
        height: Of the image, in pixels, at least 1.
        tries: Numbers in [0, 1), (n, 4), as `draw_crop` gives them.

    Returns:
        (left, top, right, bottom), inside (0, 0, width, height) and not empty.
    """
    low, high = CROP_RATIO
    for area, ratio, x, y in tries.tolist():
        target = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area)
        quotient = low * (high / low) ** ratio
        w, h = round(math.sqrt(target * quotient)), round(math.sqrt(target / quotient))
        if 1 <= w <= width and 1 <= h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * high)))
    h = max(1, min(height, round(width / low)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
