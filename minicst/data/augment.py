"""Random crop and horizontal flip of a batch of raw images."""

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
