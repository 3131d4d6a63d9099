import numpy as np
import pytest

from minicst.data.augment import crop_flip, crop_padding
from minicst.randomness import rng_for


def _oracle(images, rng):
    count, height, width, channels = images.shape
    pad_h, pad_w = max(1, height // 8), max(1, width // 8)
    top = [int(t) for t in rng.integers(0, 2 * pad_h + 1, size=count)]
    left = [int(t) for t in rng.integers(0, 2 * pad_w + 1, size=count)]
    flip = [int(t) for t in rng.integers(0, 2, size=count)]
    out = np.zeros_like(images)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                crop_x = width - 1 - x if flip[n] else x
                source_y, source_x = y + top[n] - pad_h, crop_x + left[n] - pad_w
                if 0 <= source_y < height and 0 <= source_x < width:
                    for c in range(channels):
                        out[n, y, x, c] = images[n, source_y, source_x, c]
    return out


@pytest.mark.parametrize("shape", [(9, 32, 32, 3), (6, 28, 28, 1), (7, 8, 8, 1), (5, 8, 17, 2)])
def test_equals_a_loop_over_pixels(shape):
    images = rng_for(1, *shape).integers(1, 256, size=shape, dtype=np.uint8)
    before = images.copy()
    got = crop_flip(images, rng_for(2, "x"))
    assert got.dtype == np.uint8
    assert np.array_equal(got, _oracle(images, rng_for(2, "x")))
    assert np.array_equal(images, before)


def test_flip_is_even_and_offsets_reach_both_ends():
    images = np.zeros((4000, 8, 8, 1), np.uint8)
    images[:, 3, 2] = 1
    rows, columns = np.nonzero(crop_flip(images, rng_for(0))[..., 0])[1:]
    assert set(rows) == {2, 3, 4}
    assert set(columns) == {1, 2, 3, 4, 5, 6}
    assert abs((columns > 3).mean() - 0.5) < 0.04
    for place in range(1, 7):
        assert abs((columns == place).mean() - 1 / 6) < 0.04


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (28, 3), (8, 1), (4, 1), (64, 8)])
def test_padding(size, padding):
    assert crop_padding(size) == padding
