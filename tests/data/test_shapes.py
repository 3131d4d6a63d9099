import numpy as np
import pytest

from minicst.data import load_dataset
from minicst.data.shapes import CLASS_NAMES, make_shapes


def _nearest_class_mean(train, train_labels, test, test_labels):
    means = np.stack([train[train_labels == label].mean(axis=0) for label in range(10)])
    guess = ((test[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    return (guess == test_labels).mean()


def test_same_seed_gives_the_same_bits():
    first = make_shapes(5, 2, 3)
    make_shapes.cache_clear()
    second = make_shapes(5, 2, 3)
    assert first is not second
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], make_shapes(5, 2, 4)[0])


def test_is_kept_in_the_process_and_read_only():
    assert make_shapes() is make_shapes()
    assert not any(array.flags.writeable for array in make_shapes())


def test_is_labeled_synthetic():
    data = load_dataset("shapes32")
    assert data.source.startswith("synthetic")
    assert data.class_names == CLASS_NAMES


def test_classes_are_in_mixed_order():
    labels = make_shapes()[1]
    assert (np.diff(labels) == 0).mean() < 0.2


def test_raw_pixels_do_not_give_the_class_away():
    train, train_labels, test, test_labels = make_shapes()
    score = _nearest_class_mean(
        train.reshape(len(train), -1) / 255,
        train_labels,
        test.reshape(len(test), -1) / 255,
        test_labels,
    )
    assert score < 0.3


def test_color_does_not_give_the_class_away():
    def colors(images):
        return np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)

    train, train_labels, test, test_labels = make_shapes()
    assert _nearest_class_mean(colors(train), train_labels, colors(test), test_labels) < 0.3


def test_horizontal_and_vertical_stripes_differ_by_direction():
    images, labels, _, _ = make_shapes()
    pixels = images.astype(np.float64)
    across = np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2, 3))
    down = np.abs(np.diff(pixels, axis=1)).mean(axis=(1, 2, 3))
    for name, more, less in (
        ("horizontal stripes", down, across),
        ("vertical stripes", across, down),
    ):
        chosen = labels == CLASS_NAMES.index(name)
        assert (more[chosen] > less[chosen]).all()


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_counts_below_one_are_an_error(counts):
    with pytest.raises(ValueError, match="at least 1"):
        make_shapes(*counts)
