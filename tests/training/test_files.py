import json
import zipfile

import numpy as np
import pytest

import minicst
from minicst.checkpoint import read_arrays, save, write_arrays
from minicst.models import build
from minicst.sparse import cut, repair


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.npz"
    write_arrays(path, "checkpoint", {"epoch": 3}, {"a": np.arange(6.0).reshape(2, 3)})
    return path


def one_line(error):
    assert "\n" not in str(error.value)


def test_round_trip(path):
    header, arrays = read_arrays(path, "checkpoint")
    assert header["epoch"] == 3
    assert list(arrays) == ["a"]
    assert np.array_equal(arrays["a"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("where", ["numpy.savez", "minicst.checkpoint.os.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, where, monkeypatch):
    before = path.read_bytes()

    def fails(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, fails)
    with pytest.raises(ValueError, match=r"No space left.*unchanged.*--out") as error:
        write_arrays(path, "checkpoint", {}, {"a": np.zeros(2)})
    one_line(error)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"file\.npz") as error:
        read_arrays(path, "checkpoint")
    one_line(error)


def test_foreign_files_are_refused(tmp_path):
    text = tmp_path / "text.npz"
    text.write_text("weights\n")
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, weights=np.zeros(3))
    other = tmp_path / "other.npz"
    np.savez(other, header=np.frombuffer(json.dumps({"format": "x"}).encode(), np.uint8))
    single = tmp_path / "single.npz"
    with open(single, "wb") as file:
        np.save(file, np.zeros(3))
    for path in (text, foreign, other, single, tmp_path / "missing.npz", tmp_path):
        with pytest.raises(ValueError, match=path.name) as error:
            read_arrays(path, "checkpoint")
        one_line(error)


def test_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("pickle was run",))

    path = tmp_path / "pickled.npz"
    header = np.frombuffer(b"{}", np.uint8)
    np.savez(path, header=header, bomb=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pickled\.npz"):
        read_arrays(path, "checkpoint")


def test_kind_and_version_are_checked(path, monkeypatch):
    with pytest.raises(ValueError, match="holds a checkpoint, and a network is needed"):
        read_arrays(path, "network")
    monkeypatch.setattr("minicst.checkpoint.VERSION", 2)
    with pytest.raises(ValueError, match="format version 1"):
        read_arrays(path, "checkpoint")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"residual": "independent", "shortcut": "A"}),
        ("resnet20", {"residual": "independent", "shortcut": "B"}),
        ("resnet20", {"residual": "tied", "shortcut": "A"}),
        ("vgg-small", {}),
        ("mlp", {"image_size": 8}),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_cut_network_can_be_saved_and_loaded(name, options, dtype, tmp_path):
    rng = np.random.default_rng(2)
    network = build(name, width=0.5, **options).astype(dtype)
    n = network.n_maskable
    mask, _ = repair(network, rng.random(n) < 0.3, np.full(n, 0.3))
    small = cut(network, mask).network
    x = rng.normal(size=(3, 8, 8, 3)).astype(dtype)
    small(x, training=True)
    save(small, tmp_path / "network.npz")
    loaded = minicst.load(tmp_path / "network.npz")
    assert loaded.n_parameters() == small.n_parameters()
    assert np.array_equal(loaded(x).data, small(x).data)


def test_a_network_of_unknown_parts_is_refused(tmp_path):
    network = build("vgg-tiny")
    spec = network.spec()
    spec["nodes"][0]["kind"] = "attention"
    header = {"spec": spec, "dtype": "float32"}
    write_arrays(tmp_path / "new.npz", "network", header, network.state())
    with pytest.raises(ValueError, match="attention"):
        minicst.load(tmp_path / "new.npz")


def test_files_are_plain_zip_archives_of_arrays(path):
    assert set(zipfile.ZipFile(path).namelist()) == {"header.npy", "a.npy"}
