import itertools

import numpy as np
import pytest

from minicst.data import Loader, load_dataset, test_loader, train_loader
from minicst.data.augment import crop_flip
from minicst.randomness import rng_for


def _arrays(count=23, size=8, channels=2):
    # The first pixel names the image.
    images = rng_for(0, "test images").integers(
        0, 256, size=(count, size, size, channels), dtype=np.uint8
    )
    images[:, 0, 0, 0] = np.arange(count)
    return images, np.arange(count, dtype=np.int64) % 5


def _loader(**changes):
    images, labels = _arrays()
    arguments = {
        "images": images,
        "labels": labels,
        "batch_size": 4,
        "mean": (0.25, 0.5),
        "std": (0.5, 0.125),
        "max_value": 255.0,
    }
    arguments.update(changes)
    return Loader(arguments.pop("images"), arguments.pop("labels"), **arguments)


def _same(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) > 0 and all(
        a.index == b.index
        and a.images.tobytes() == b.images.tobytes()
        and a.labels.tobytes() == b.labels.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def _identities(batches):
    return np.concatenate(
        [np.rint((b.images[:, 0, 0, 0] * 0.5 + 0.25) * 255).astype(int) for b in batches]
    )


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_same_seed_gives_the_same_bits(augment):
    loader = _loader(augment=augment, seed=3)
    assert _same(loader.epoch(2), loader.epoch(2))
    assert _same(loader.epoch(2), _loader(augment=augment, seed=3).epoch(2))
    assert not _same(loader.epoch(2), loader.epoch(1))
    assert not _same(loader.epoch(2), _loader(augment=augment, seed=4).epoch(2))


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.parametrize("prefetch", [True, False])
def test_resumed_epoch_equals_one_run_through(augment, prefetch):
    loader = _loader(augment=augment, prefetch=prefetch, drop_last=False)
    for start in range(len(loader)):
        whole = itertools.islice(loader.epoch(1), start, None)
        assert _same(whole, loader.epoch(1, start))
    assert list(loader.epoch(1, len(loader))) == []


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_prefetch_changes_no_bit(augment):
    on, off = (_loader(augment=augment, prefetch=value) for value in (True, False))
    for epoch in range(3):
        assert _same(on.epoch(epoch), off.epoch(epoch))


def test_every_image_once_a_shuffled_epoch():
    loader = _loader(drop_last=False)
    batches = list(loader.epoch(0))
    assert [len(batch.labels) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert [batch.index for batch in batches] == list(range(6)) == list(range(len(loader)))
    order = _identities(batches)
    assert sorted(order) == list(range(23))
    assert order.tolist() != sorted(order)
    assert np.array_equal(np.concatenate([b.labels for b in batches]), order % 5)


def test_order_is_the_permutation_of_its_key():
    order = _identities(_loader(seed=9, drop_last=False).epoch(6))
    assert np.array_equal(order, rng_for(9, "order", 6).permutation(23))


def test_drop_last_leaves_out_the_smaller_batch():
    loader = _loader()
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 5
    assert all(len(batch.labels) == 4 for batch in batches)
    assert len(_loader(batch_size=23)) == len(_loader(batch_size=23, drop_last=False)) == 1


def test_without_shuffle_the_order_is_that_of_the_arrays():
    loader = _loader(shuffle=False, drop_last=False)
    assert np.array_equal(_identities(loader.epoch(5)), np.arange(23))


def test_normalization_and_dtypes():
    images, _ = _arrays()
    for batch in _loader(shuffle=False, augment="crop-flip").epoch(0):
        assert batch.images.dtype == np.float32
        assert batch.images.flags.c_contiguous
        assert batch.labels.dtype == np.int64
    batch = next(iter(_loader(shuffle=False, prefetch=False).epoch(0)))
    expected = (images[:4] / 255 - (0.25, 0.5)) / (0.5, 0.125)
    np.testing.assert_allclose(batch.images, expected, rtol=0, atol=1e-6)


def test_augmentation_works_on_raw_pixels_with_the_key_of_the_batch():
    images, _ = _arrays()
    order = rng_for(7, "order", 2).permutation(23)
    for batch in _loader(seed=7, augment="crop-flip").epoch(2):
        chosen = order[4 * batch.index : 4 * batch.index + 4]
        raw = crop_flip(images[chosen], rng_for(7, "augment", 2, batch.index))
        expected = (raw / 255 - (0.25, 0.5)) / (0.5, 0.125)
        np.testing.assert_allclose(batch.images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["fashion", "digits", "shapes32"])
def test_normalized_training_images_have_mean_zero_and_std_one(name):
    data = load_dataset(name)
    loader = Loader(
        data.train_images,
        data.train_labels,
        batch_size=len(data.train_labels),
        mean=data.mean,
        std=data.std,
        max_value=data.max_value,
    )
    (batch,) = loader.epoch(0)
    images = batch.images.astype(np.float64)
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1.0, atol=1e-5)


def test_batches_are_the_consumer_s_own():
    images, labels = _arrays()
    loader = _loader(images=images, labels=labels, shuffle=False)
    for batch in loader.epoch(0):
        batch.images[:] = 0
        batch.labels[:] = 0
    assert np.array_equal(images, _arrays()[0])
    assert np.array_equal(labels, _arrays()[1])


def test_train_and_test_loader():
    data = load_dataset("digits")
    train = train_loader(data, 64, seed=5, augment="crop-flip")
    assert len(train) == 1437 // 64
    assert (train.seed, train.augment, train.shuffle) == (5, "crop-flip", True)
    test = test_loader(data, 1000)
    (batch,) = test.epoch(0)
    assert len(test) == 1
    assert np.array_equal(batch.labels, data.test_labels)
    assert len(test_loader(data, 100)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 24}, r"24 is more than the 23 images, .* at most 23 \(--batch-size\)"),
        ({"augment": "cutout"}, "unknown augment 'cutout'; available: none, crop-flip"),
        ({"augment": "resized-crop"}, "'resized-crop' is for image files"),
        ({"workers": 0}, "workers must be at least 1 thread, got 0"),
        ({"labels": np.zeros(22, np.int64)}, "23 images but 22 labels"),
        ({"labels": np.full(23, -1)}, "labels must be 0 or more, got -1"),
        ({"num_classes": 4}, r"labels must lie in 0\.\.3, got 4"),
        ({"labels": np.zeros(23, np.int32)}, "labels must be int64"),
        ({"labels": np.zeros((23, 1), np.int64)}, "labels must be int64"),
        ({"images": np.zeros((23, 8, 8, 2), np.float32)}, "images must be .* float32"),
        ({"images": np.zeros((23, 8, 8), np.uint8)}, "images must be"),
        ({"images": np.zeros((0, 8, 8, 2), np.uint8)}, "images must be"),
        ({"mean": (0.5,)}, "mean and std must have one value"),
        ({"std": (1.0, 0.0)}, "above 0"),
        ({"mean": (np.nan, 0.0)}, "finite"),
        ({"max_value": 0.0}, "max_value"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        _loader(**changes)


@pytest.mark.parametrize("prefetch", [True, False])
def test_bad_epoch_or_start_shows_before_the_first_batch(prefetch):
    loader = _loader(prefetch=prefetch)
    with pytest.raises(ValueError, match="epoch must be 0 or more"):
        loader.epoch(-1)
    for start in (-1, 6):
        with pytest.raises(ValueError, match=r"start must lie in 0\.\.5"):
            loader.epoch(0, start)
