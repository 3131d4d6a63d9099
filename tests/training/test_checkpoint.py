"""Beside test_files.py: array kinds that are written, first writes that fail, foreign versions."""

import json

import numpy as np
import pytest

import minicst
from minicst.checkpoint import read_arrays, save, write_arrays
from minicst.models import build
from minicst.sparse import cut, repair


def test_arrays_come_back_with_type_shape_and_bits(tmp_path):
    arrays = {
        "scalar": np.array(7),
        "empty": np.zeros(0, bool),
        "mask": np.array([True, False]),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "strided": np.arange(10.0)[::3],
        "odd/name.weight": np.array([np.nan, np.inf, -0.0, 5e-324]),
    }
    path = tmp_path / "file.npz"
    write_arrays(path, "checkpoint", {"text": "ä", "none": None, "list": [1, 0.1]}, arrays)
    header, read = read_arrays(path, "checkpoint")
    assert (header["text"], header["none"], header["list"]) == ("ä", None, [1, 0.1])
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("where", ["numpy.savez", "os.replace", "os.fsync"])
def test_a_first_write_that_fails_leaves_nothing(tmp_path, where, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(ValueError, match="No space left on device") as error:
        write_arrays(tmp_path / "file.npz", "checkpoint", {}, {"a": np.zeros(2)})
    assert "\n" not in str(error.value)
    assert "unchanged" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_objects_are_not_written(tmp_path):
    path = tmp_path / "file.npz"
    write_arrays(path, "checkpoint", {}, {"a": np.zeros(2)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(path, "checkpoint", {}, {"a": np.array([{}], dtype=object)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("header", [[], 3, None, "text"], ids=str)
def test_a_header_that_is_no_mapping_is_refused(tmp_path, header):
    path = tmp_path / "file.npz"
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    with pytest.raises(ValueError, match="isn't a file of minicst") as error:
        read_arrays(path, "checkpoint")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_cut_independent_resnet_gives_equal_logits(tmp_path, shortcut):
    network = build("resnet20", width=0.25, residual="independent", shortcut=shortcut)
    rng = np.random.default_rng(4)
    n = network.n_maskable
    mask, _ = repair(network, rng.random(n) < 0.5, np.full(n, 0.5))
    small = cut(network, mask).network
    x = rng.random((4, 16, 16, 3), np.float32)
    small(x, training=True)
    save(small, tmp_path / "network.npz")
    loaded = minicst.load(tmp_path / "network.npz")
    assert loaded.spec() == small.spec()
    assert np.array_equal(loaded(x).data, small(x).data)
