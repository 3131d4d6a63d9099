"""Data sets of one's own in a .npz file."""

import os
import pickle

import numpy as np
import pytest

from minicst.data import load_dataset

RNG = np.random.default_rng(7)
GOOD = {
    "x_train": RNG.integers(0, 256, (6, 5, 4, 3), np.uint8),
    "y_train": np.array([0, 2, 1, 0, 2, 1]),
    "x_test": RNG.integers(0, 256, (2, 5, 4, 3), np.uint8),
    "y_test": np.array([3, 0]),
}


def write(tmp_path, **changes):
    path = tmp_path / "mine.npz"
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    np.savez(path, **content)
    return path


def one_line_error(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset("npz", data_dir=path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"npz: {path}") or "there is no file" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_written(tmp_path, dtype, save):
    path = tmp_path / "mine.npz"
    labels = {key: GOOD[key].astype(dtype) for key in ("y_train", "y_test")}
    save(path, **{**GOOD, **labels}, other=np.zeros(3))
    data = load_dataset("npz", data_dir=str(path))
    assert np.array_equal(data.train_images, GOOD["x_train"])
    assert np.array_equal(data.train_labels, GOOD["y_train"])
    assert np.array_equal(data.test_images, GOOD["x_test"])
    assert np.array_equal(data.test_labels, GOOD["y_test"])
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.class_names == ("0", "1", "2", "3")  # the last one is only in the test half
    assert (data.name, data.input_shape, data.max_value) == ("npz", (5, 4, 3), 255.0)
    assert data.source == f"a data set of one's own, read from {path}"
    scaled = GOOD["x_train"] / 255.0
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_grey_images(tmp_path):
    grey = {key: GOOD[key][..., 0] for key in ("x_train", "x_test")}
    data = load_dataset("npz", data_dir=write(tmp_path, **grey))
    assert data.input_shape == (5, 4, 1)
    assert np.array_equal(data.train_images[..., 0], grey["x_train"])


def test_names_of_the_classes(tmp_path):
    names = np.array(["a", "b", "c", "d", "e"])
    data = load_dataset("npz", data_dir=write(tmp_path, class_names=names))
    assert data.class_names == ("a", "b", "c", "d", "e")
    assert data.num_classes == 5


def test_limit_and_validation(tmp_path):
    data = load_dataset("npz", data_dir=write(tmp_path), limit=2, validation=0.5)
    assert sorted(data.test_labels) == [0, 1, 2]
    assert len(data.train_labels) == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x_test": None}, "has no x_test; it holds x_train, y_train, y_test, and needs"),
        ({"x_train": GOOD["x_train"] / 255.0}, r"x_train is float64 \(6, 5, 4, 3\); it must be ui"),
        ({"x_test": GOOD["x_test"][0, 0]}, r"x_test is uint8 \(4, 3\); it must be uint8 \(n, h"),
        ({"x_test": np.zeros((0, 5, 4, 3), np.uint8)}, r"x_test is uint8 \(0, 5, 4, 3\)"),
        ({"x_test": GOOD["x_test"][:, 1:]}, r"shape \(5, 4, 3\), x_test of \(4, 4, 3\)"),
        ({"y_train": GOOD["y_train"][1:]}, r"y_train is int64 \(5,\); .* \(6,\), one for each"),
        ({"y_train": GOOD["y_train"] * 1.0}, r"y_train is float64 \(6,\); it must be whole"),
        ({"y_train": np.eye(6, dtype=int)}, r"y_train is int64 \(6, 6\)"),
        ({"y_test": np.array([0, -1])}, "y_test holds -1; labels are 0, 1"),
        ({"y_test": np.array([0, 2**63], np.uint64)}, "y_test holds 9223372036854775808"),
        ({"class_names": np.array(["a", "b", "c"])}, r"class_names is <U1 \(3,\); .* 0 to 3"),
        ({"class_names": np.arange(4)}, r"class_names is int64 \(4,\)"),
        ({"class_names": np.array([["a"] * 4])}, r"class_names is <U1 \(1, 4\)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, match):
    one_line_error(write(tmp_path, **changes), match)


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("key", ["x_train", "y_test", "class_names"])
def test_object_arrays_are_refused_and_run_nothing(tmp_path, key):
    marker = tmp_path / "marker"
    path = write(tmp_path, **{key: np.array([Runs(marker)], dtype=object)})
    one_line_error(path, f"{key} can't be read .*allow_pickle.*without object arrays")
    path.write_bytes(pickle.dumps(Runs(marker)))
    one_line_error(path, "can't be read as .npz")
    assert not marker.exists()


def test_damaged_files(tmp_path):
    path = write(tmp_path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:-1], b"PK\x03\x04"):
        path.write_bytes(damaged)
        one_line_error(path, "can't be read as .npz .* write it with numpy.savez")
    flipped = bytearray(content)
    flipped[300] ^= 255
    path.write_bytes(flipped)
    one_line_error(path, "x_train can't be read")
    np.save(tmp_path / "a.npy", GOOD["x_train"])
    one_line_error(tmp_path / "a.npy", "can't be read as .npz")


def test_missing_file(tmp_path):
    one_line_error(tmp_path / "no.npz", "there is no file .*no.npz; give --data-dir FILE.npz")
    one_line_error(tmp_path, "there is no file")
