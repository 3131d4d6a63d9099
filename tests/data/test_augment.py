import math

import numpy as np
import pytest

from minicst.data.augment import crop_box, crop_flip, crop_padding, draw_crop
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


def _tries(*rows):
    return np.array(rows, float)


@pytest.mark.parametrize("shape", [(500, 375), (32, 32), (640, 97), (40, 500), (3, 3), (1, 60)])
def test_crop_boxes_lie_inside_and_have_the_asked_area_and_ratio(shape):
    width, height = shape
    rng = rng_for(4, *shape)
    shares, ratios = [], []
    for _ in range(400):
        left, top, right, bottom = crop_box(width, height, draw_crop(rng)[0])
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        # Rounding to pixels moves either side by half of one.
        if shape not in ((40, 500), (1, 60), (640, 97)):
            assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / (h - 0.5) >= 3 / 4
        shares.append(w * h / (width * height))
        ratios.append(w / h)
    if shape == (500, 375):
        assert min(shares) < 0.12
        assert max(shares) > 0.9
        assert min(ratios) < 0.78
        assert max(ratios) > 1.29


def test_crop_is_uniform_in_area_log_ratio_and_place():
    # A small area fits in all ratios, so that the first try is always taken.
    rng = rng_for(8)
    draws = rng.random((4000, 1, 4)) * (0.5, 1, 1, 1)
    boxes = np.array([crop_box(1000, 1000, tries) for tries in draws], float)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = (w * h / 1e6 - 0.08) / 0.92
    log_ratio = np.log(w / h) / math.log(4 / 3)
    # Five standard errors of uniform means.
    assert abs(area.mean() - 0.25) < 5 * 0.5 / math.sqrt(12 * 4000)
    assert abs(log_ratio.mean()) < 5 * 2 / math.sqrt(12 * 4000)
    assert abs(log_ratio.std() - 2 / math.sqrt(12)) < 0.03
    for start, free in ((boxes[:, 0], 1000 - w), (boxes[:, 1], 1000 - h)):
        assert abs((start / free).mean() - 0.5) < 5 / math.sqrt(12 * 4000)


def test_crop_box_by_hand():
    # a = (.25 - .08) / .92 is a quarter of the area; r = 1/2 is a square.
    quarter = (0.25 - 0.08) / 0.92
    assert crop_box(100, 100, _tries((quarter, 0.5, 0, 0))) == (0, 0, 50, 50)
    assert crop_box(100, 100, _tries((quarter, 0.5, 0.5, 0.999))) == (25, 50, 75, 100)
    assert crop_box(100, 100, _tries((quarter, 0.5, 0.999, 0.5))) == (50, 25, 100, 75)
    # Wide: 4/3 of an area of 0.12 x 10,000 is 40 x 30.
    wide = (0.12 - 0.08) / 0.92
    assert crop_box(100, 100, _tries((wide, 1.0, 0, 0))) == (0, 0, 40, 30)
    assert crop_box(100, 100, _tries((wide, 0.0, 0, 0))) == (0, 0, 30, 40)
    # A try that doesn't fit leaves it to the next.
    assert crop_box(100, 100, _tries((1.0, 1.0, 0, 0), (wide, 1.0, 0, 0))) == (0, 0, 40, 30)


def test_crop_box_without_a_fit_is_the_middle():
    no_fit = _tries(*[(1.0, 0.0, 0.3, 0.3)] * 10)
    assert crop_box(100, 100, no_fit) == (0, 0, 100, 100)
    assert crop_box(200, 30, no_fit) == (80, 0, 120, 30)
    assert crop_box(30, 200, no_fit) == (0, 80, 30, 120)
    assert crop_box(1, 60, no_fit) == (0, 29, 1, 30)


def test_draw_crop_always_takes_as_many_numbers():
    rng, other = rng_for(5), rng_for(5)
    tries, _ = draw_crop(rng)
    assert tries.shape == (10, 4)
    other.random(41)
    assert rng.random() == other.random()
    flips = [draw_crop(rng)[1] for _ in range(2000)]
    assert abs(np.mean(flips) - 0.5) < 5 * 0.5 / math.sqrt(2000)
