import dataclasses
import fractions
import math
import re

import numpy as np
import pytest
from PIL import Image

import minicst.data.datasets as module
from minicst.data import DATASETS, Dataset, load_dataset

EXPECTED = {
    "fashion": ((28, 28, 1), 2000, 500, 255.0),
    "digits": ((8, 8, 1), 1437, 360, 16.0),
    "shapes32": ((32, 32, 3), 2000, 500, 255.0),
}


def test_every_data_set_is_tested_here_or_read_from_files():
    read = {"cifar10", "cifar100", "mnist", "fashion-mnist", "npz", "folder"}
    assert set(DATASETS) == {*EXPECTED, *read}
    assert len(DATASETS) == len(set(DATASETS))


@pytest.mark.parametrize("name", EXPECTED)
def test_shapes_dtypes_and_ranges(name):
    shape, train, test, max_value = EXPECTED[name]
    data = load_dataset(name)
    assert (data.name, data.input_shape, data.num_classes) == (name, shape, 10)
    assert data.train_images.shape == (train, *shape)
    assert data.test_images.shape == (test, *shape)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.max_value == max_value
    assert data.train_images.max() == max_value
    assert set(data.train_labels) == set(data.test_labels) == set(range(10))
    assert all(type(value) is float for value in data.mean + data.std)
    assert data.source
    assert "\n" not in data.source


@pytest.mark.parametrize("name", EXPECTED)
def test_statistics_are_those_of_the_training_images(name):
    data = load_dataset(name)
    scaled = data.train_images / data.max_value
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 1, 2)), rtol=1e-10)


@pytest.mark.parametrize("name", EXPECTED)
def test_training_and_test_images_are_distinct(name):
    data = load_dataset(name)
    train = {image.tobytes() for image in data.train_images}
    assert not any(image.tobytes() in train for image in data.test_images)


@pytest.mark.parametrize("name", ["fashion", "shapes32"])
def test_classes_are_balanced(name):
    data = load_dataset(name)
    assert np.bincount(data.train_labels).tolist() == [200] * 10
    assert np.bincount(data.test_labels).tolist() == [50] * 10


def test_digits_are_stratified_and_complete():
    data = load_dataset("digits")
    share = np.bincount(data.test_labels) / (
        np.bincount(data.train_labels) + np.bincount(data.test_labels)
    )
    np.testing.assert_allclose(share, 360 / 1797, atol=0.005)
    with np.load(module._FOLDER / "digits.npz", allow_pickle=False) as file:
        index = np.concatenate([file["train_index"], file["test_index"]])
    assert np.array_equal(np.sort(index), np.arange(1797))


@pytest.mark.parametrize("name", EXPECTED)
def test_arrays_are_read_only(name):
    data = load_dataset(name)
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        data.test_labels[0] = 0


@pytest.mark.parametrize(("name", "side"), [("fashion", 2), ("digits", 12), ("shapes32", 0)])
def test_pad_to_adds_a_symmetric_border_of_zeros(name, side):
    plain, padded = load_dataset(name), load_dataset(name, pad_to=32)
    assert padded.input_shape == (32, 32, plain.input_shape[2])
    inner = slice(side, 32 - side)
    for half in ("train_images", "test_images"):
        before, after = getattr(plain, half), getattr(padded, half)
        assert np.array_equal(after[:, inner, inner], before)
        assert after.sum(dtype=np.int64) == before.sum(dtype=np.int64)
    assert (padded.mean, padded.std) == (plain.mean, plain.std)


def test_odd_padding_goes_to_the_bottom_and_right():
    plain, padded = load_dataset("digits"), load_dataset("digits", pad_to=11)
    assert np.array_equal(padded.test_images[:, 1:9, 1:9], plain.test_images)


def test_pad_to_smaller_than_the_images_is_an_error():
    with pytest.raises(ValueError, match="28x28 are larger than pad_to 16"):
        load_dataset("fashion", pad_to=16)


def test_pad_to_the_size_there_is_changes_nothing():
    plain, padded = load_dataset("shapes32"), load_dataset("shapes32", pad_to=32)
    assert np.array_equal(plain.train_images, padded.train_images)
    assert not padded.train_images.flags.writeable


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("limit", [1, 37, None])
def test_limit_keeps_the_first_training_images(name, limit):
    limit = limit or EXPECTED[name][1]
    whole, part = load_dataset(name), load_dataset(name, limit=limit)
    assert np.array_equal(part.train_images, whole.train_images[:limit])
    assert np.array_equal(part.train_labels, whole.train_labels[:limit])
    assert np.array_equal(part.test_images, whole.test_images)
    assert np.array_equal(part.test_labels, whole.test_labels)
    scaled = whole.train_images[:limit] / whole.max_value
    np.testing.assert_allclose(part.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(part.std, scaled.std(axis=(0, 1, 2)), rtol=1e-10)
    assert not part.train_images.flags.writeable
    assert part.num_classes == whole.num_classes


def test_statistics_of_a_padded_limit_are_those_without_padding():
    plain, padded = load_dataset("digits", limit=9), load_dataset("digits", pad_to=32, limit=9)
    assert (padded.mean, padded.std) == (plain.mean, plain.std)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, "limit is 0: it must be at least 1"),
        (-5, "limit is -5: it must be at least 1"),
        (1438, "limit is 1438: digits has 1437 training images"),
    ],
)
def test_limit_out_of_range_is_one_line(limit, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset("digits", limit=limit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_folder_for_what_is_inside_the_package_is_an_error(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is inside the package.*leave out --data-dir"):
        load_dataset(name, data_dir=tmp_path)


def test_unknown_name_is_one_line_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"'imagenet'.*fashion, digits, shapes32, fas") as caught:
        load_dataset("imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "wanted"), [("npz", "FILE.npz"), ("folder", "FOLDER with train")])
def test_a_data_set_of_ones_own_needs_a_place(name, wanted):
    with pytest.raises(ValueError, match=f"{name} is .* your own: give --data-dir {wanted}"):
        load_dataset(name)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "npz"])
def test_files_that_may_not_be_read(name, tmp_path, monkeypatch):
    # A superuser may read anything: the refusal is made here.
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied", "the file")

    function = {"cifar10": "open_cifar", "mnist": "open_idx", "npz": "open_npz"}[name]
    monkeypatch.setattr(module, function, refuse)
    match = f"^{name}: can't read its files .*Permission denied: 'the file'.*; check the path"
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)


# Held-out images


def rounded_half_up(share, count):
    return math.floor(fractions.Fraction(share) * count + fractions.Fraction(1, 2))


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("share", [0.1, 0.25, 0.999])
def test_held_out_images_take_the_place_of_the_test_images(name, share):
    whole, data = load_dataset(name), load_dataset(name, validation=share)
    assert (whole.evaluated_on, data.evaluated_on) == ("test", "validation")
    counts = np.bincount(whole.train_labels)
    held_out = [min(rounded_half_up(share, count), count - 1) for count in counts]
    assert np.bincount(data.test_labels).tolist() == held_out
    assert np.bincount(data.train_labels).tolist() == (counts - held_out).tolist()
    # Every training image is in exactly one of the two, in its old order and with its label.
    keys = [
        image.tobytes() + bytes([y])
        for image, y in zip(whole.train_images, whole.train_labels, strict=True)
    ]
    assert len(set(keys)) == len(keys)
    place = {key: index for index, key in enumerate(keys)}
    parts = []
    for images, labels in (
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
    ):
        part = [
            place[image.tobytes() + bytes([y])] for image, y in zip(images, labels, strict=True)
        ]
        assert part == sorted(part)
        parts += part
    assert sorted(parts) == list(range(len(keys)))
    # Mean and std are those of what is trained on.
    scaled = data.train_images / data.max_value
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 1, 2)), rtol=1e-10)
    assert not data.train_images.flags.writeable
    assert not data.test_images.flags.writeable


def test_held_out_images_are_drawn_and_not_the_first_ones():
    whole, data = load_dataset("digits"), load_dataset("digits", validation=0.5)
    first = np.flatnonzero(whole.train_labels == 3)
    chosen = data.test_images[data.test_labels == 3]
    assert not np.array_equal(chosen, whole.train_images[first[: len(chosen)]])


@pytest.mark.parametrize("limit", [1, 100, 1292])
def test_held_out_images_do_not_depend_on_the_limit(limit):
    whole, part = (load_dataset("digits", validation=0.1, limit=n) for n in (None, limit))
    assert len(whole.train_images) == 1292
    assert np.array_equal(part.test_images, whole.test_images)
    assert np.array_equal(part.test_labels, whole.test_labels)
    assert np.array_equal(part.train_images, whole.train_images[:limit])
    assert np.array_equal(part.train_labels, whole.train_labels[:limit])


def test_padding_of_held_out_images():
    plain, padded = (load_dataset("digits", pad_to=n, validation=0.1) for n in (None, 12))
    assert np.array_equal(padded.test_images[:, 2:10, 2:10], plain.test_images)
    assert (padded.mean, padded.std) == (plain.mean, plain.std)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 1.0}, r"validation is 1\.0: it is a share"),
        ({"validation": -0.1}, r"validation is -0\.1: it is a share"),
        ({"validation": float("nan")}, r"validation is nan: it is a share"),
        ({"validation": 0.001}, r"validation is 0\.001: of digits's 1437 .* none of any class"),
        ({"validation": 0.1, "limit": 1293}, "limit is 1293: digits has 1292 training images"),
    ],
)
def test_validation_out_of_range_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset("digits", **arguments)
    assert "\n" not in str(caught.value)


def test_a_class_of_one_image_stays_in_training():
    labels = np.array([0, 0, 0, 0, 1, 3, 3])
    held_out = module._draw_held_out("x", labels, 0.5)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [2, 0, 0, 1]


# Damaged files of the package


def _write_valid(path, **changes):
    arrays = {
        "x_train": np.zeros((2, 8, 8), np.uint8),
        "y_train": np.zeros(2, np.uint8),
        "x_test": np.zeros((1, 8, 8), np.uint8),
        "y_test": np.zeros(1, np.uint8),
    }
    arrays.update(changes)
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})


def _damage(path, kind):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an archive")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "key":
        _write_valid(path, y_test=None)
    elif kind == "dtype":
        _write_valid(path, x_train=np.zeros((2, 8, 8)))
    elif kind == "length":
        _write_valid(path, y_train=np.zeros(3, np.uint8))
    elif kind == "pickle":
        _write_valid(path, x_train=np.array([{}, {}], dtype=object))
    else:
        data = bytearray((module.Path(module.__file__).parent / "digits.npz").read_bytes())
        if kind == "cut":
            data = data[: len(data) // 2]
        elif kind == "flipped":
            data[2000:2100] = bytes(100)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "kind", ["empty", "text", "npy", "key", "dtype", "length", "pickle", "cut", "flipped"]
)
def test_damaged_file_is_one_clear_line(kind, tmp_path, monkeypatch):
    _damage(tmp_path / "digits.npz", kind)
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=re.escape("digits.npz is damaged")) as caught:
        load_dataset("digits")
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"fashion_2000_500\.npz is missing"):
        load_dataset("fashion")


@pytest.mark.parametrize("file_name", ["fashion_LICENSE.txt", "digits_SOURCE.txt"])
def test_notices_lie_beside_the_data(file_name):
    assert "opyright (c)" in (module._FOLDER / file_name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_images", np.zeros((2, 4, 4, 1)), "train_images must be"),
        ("test_images", np.zeros((2, 4, 4), np.uint8), "test_images must be"),
        ("train_images", np.full((2, 4, 4, 1), 17, np.uint8), "above 16"),
        ("test_images", np.zeros((2, 4, 5, 1), np.uint8), "differ in shape"),
        ("train_labels", np.zeros(2, np.int32), "train_labels must be int64"),
        ("train_labels", np.zeros(3, np.int64), "train_labels must be int64"),
        ("test_labels", np.array([0, 2]), r"test_labels must lie in 0\.\.1"),
        ("test_labels", np.array([0, -1]), r"test_labels must lie in 0\.\.1"),
        ("mean", (0.0, 0.0), "one value a channel"),
    ],
)
def test_dataset_checks_its_fields(field, value, message):
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])
    data = Dataset("x", images, labels, images, labels, ("a", "b"), 16.0, (0.0,), (1.0,), "test")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(data, **{field: value})


# A folder of images (its reader's tests: test_folder.py)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 6, 5 and 4 training images and 2 others each, 8x8, one color each."""
    counts = {"train": {"ant": 6, "bee": 5, "cat": 4}, "val": {"ant": 2, "bee": 2, "cat": 2}}
    shade = 0
    for half, classes in counts.items():
        for name, count in classes.items():
            (tmp_path / half / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (8, 8), (shade, 0, 255))
                image.save(tmp_path / half / name / f"{number}.png")
                shade += 10
    return tmp_path


def shades(images):
    """Return the number, in the order of the folders, of each image."""
    return (images.read(np.arange(len(images)))[:, 0, 0, 0] // 10).tolist()


def test_folder_is_read_when_it_is_used(folder):
    data = load_dataset("folder", data_dir=str(folder), image_size=8)
    assert data.name == "folder"
    assert data.class_names == ("ant", "bee", "cat")
    assert data.input_shape == (8, 8, 3)
    assert data.train_labels.tolist() == [0] * 6 + [1] * 5 + [2] * 4
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert shades(data.train_images) == list(range(15))
    assert shades(data.test_images) == list(range(15, 21))
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not data.train_labels.flags.writeable
    assert load_dataset("folder", data_dir=folder).input_shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(1, [0]), (2, [0, 7]), (5, [0, 3, 6, 9, 12]), (4, [0, 3, 7, 11]), (15, list(range(15)))],
)
def test_limit_of_a_folder_is_evenly_spaced(folder, limit, kept):
    data = load_dataset("folder", data_dir=folder, image_size=8, limit=limit)
    assert shades(data.train_images) == kept
    assert data.train_labels.tolist() == [([0] * 6 + [1] * 5 + [2] * 4)[index] for index in kept]
    assert shades(data.test_images) == list(range(15, 21))


def test_held_out_images_of_a_folder(folder):
    data = load_dataset("folder", data_dir=folder, image_size=8, validation=0.4)
    assert data.evaluated_on == "validation"
    assert np.bincount(data.test_labels).tolist() == [2, 2, 2]
    assert np.bincount(data.train_labels).tolist() == [4, 3, 2]
    train, held_out = shades(data.train_images), shades(data.test_images)
    assert sorted(train + held_out) == list(range(15))  # none of the 15..20 of val
    labels = np.array([0] * 6 + [1] * 5 + [2] * 4)
    assert data.test_labels.tolist() == labels[held_out].tolist()
    part = load_dataset("folder", data_dir=folder, image_size=8, validation=0.4, limit=3)
    assert shades(part.test_images) == held_out
    assert shades(part.train_images) == [train[0], train[3], train[6]]
    assert (data.mean, part.mean) == ((0.485, 0.456, 0.406),) * 2


def test_images_of_a_folder_are_not_padded(folder):
    assert load_dataset("folder", 8, folder, image_size=8).input_shape == (8, 8, 3)
    with pytest.raises(ValueError, match="8x8 are larger than pad_to 4"):
        load_dataset("folder", 4, folder, image_size=8)
    with pytest.raises(ValueError, match="aren't padded, give image_size 32 instead"):
        load_dataset("folder", 32, folder, image_size=8)


def test_limit_above_a_folder(folder):
    with pytest.raises(ValueError, match="limit is 16: folder has 15 training images"):
        load_dataset("folder", data_dir=folder, image_size=8, limit=16)
