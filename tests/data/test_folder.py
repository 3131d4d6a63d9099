import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from minicst.data import Loader, load_dataset, test_loader, train_loader
from minicst.data.folder import IMAGENET_MEAN, IMAGENET_STD, open_image_folder
from minicst.data.images import ImageFiles
from minicst.data.prefetch import THREAD_NAME
from minicst.randomness import rng_for

SIZE = 12


def _save(path, key=0, size=(20, 15), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng_for(key, "folder").integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """A miniature in ImageNet's layout, with what ImageNet has in it and what it might have."""
    root = tmp_path / "images"
    for label, name in enumerate(("n02", "n10", "n01")):
        for half, count in (("train", 5), ("val", 2)):
            for number in range(count):
                _save(root / half / name / f"{name}_{number}.JPEG", 100 * label + number)
    _save(root / "train/n01/cmyk.jpg", 1, mode="CMYK")
    _save(root / "train/n01/grey.png", 2, mode="L")
    _save(root / "train/n02/palette.png", 3, mode="P")
    _save(root / "train/n02/deeper/thin.png", 4, size=(1, 40))
    (root / "train/n10/text.jpg").write_text("no image")
    _save(root / "train/n10/cut.JPG", 5, size=(90, 80))
    whole = (root / "train/n10/cut.JPG").read_bytes()
    (root / "train/n10/cut.JPG").write_bytes(whole[: len(whole) // 2])
    (root / "train/n10/notes.txt").write_text("not listed")
    (root / "train/LICENSE").write_text("not listed")
    _save(root / "train/n10/._hidden.jpg", 6)
    _save(root / "train/.cache/hidden.jpg", 7)
    return root


def test_layout(root):
    train, test, names, mean, std, source = open_image_folder(root, SIZE)
    assert names == ("n01", "n02", "n10")
    assert (mean, std) == (IMAGENET_MEAN, IMAGENET_STD)
    images, labels = train
    assert isinstance(images, ImageFiles)
    assert images.paths == [
        *[f"n01/{name}" for name in ("cmyk.jpg", "grey.png")],
        *[f"n01/n01_{number}.JPEG" for number in range(5)],
        "n02/deeper/thin.png",
        *[f"n02/n02_{number}.JPEG" for number in range(5)],
        "n02/palette.png",
        "n10/cut.JPG",
        *[f"n10/n10_{number}.JPEG" for number in range(5)],
        "n10/text.jpg",
    ]
    assert labels.dtype == np.int64
    assert labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert images.shape == (21, SIZE, SIZE, 3)
    assert images.folder == root / "train"
    assert test[0].folder == root / "val"
    assert test[1].tolist() == [0, 0, 1, 1, 2, 2]
    assert "21 images of 3 classes in train, 6 in val" in source
    assert images.unreadable == {}


@pytest.mark.parametrize("name", ["validation", "test"])
def test_other_names_of_the_second_half(root, name):
    (root / "val").rename(root / name)
    _, test, *_, source = open_image_folder(root, SIZE)
    assert test[0].folder == root / name
    assert f"6 in {name}" in source


def test_val_comes_before_test(root):
    (root / "test").mkdir()
    _save(root / "test/unsorted.jpg")
    assert open_image_folder(root, SIZE)[1][0].folder.name == "val"


def test_second_half_may_lack_a_class(root):
    for path in (root / "val/n01").iterdir():
        path.unlink()
    for path in (root / "val/n02").iterdir():
        path.unlink()
    (root / "val/n02").rmdir()
    _, test, names, *_ = open_image_folder(root, SIZE)
    assert len(names) == 3
    assert test[1].tolist() == [2, 2]


def _unlink_all(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _flat_validation(root):
    _unlink_all(root / "val")
    for number in (1, 2):
        _save(root / f"val/ILSVRC2012_val_{number:08}.JPEG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: _save(root / "val/n99/a.jpg"), r"val has class 'n99' \(1 such\)"),
        (_flat_validation, r"val holds 2 images outside .*ILSVRC2012_val_00000001.*ground_truth"),
        (lambda root: _save(root / "train/stray.jpg"), "train holds 1 images outside"),
        (lambda root: _unlink_all(root / "train/n02"), r"class 'n02' \(1 such\) has no image"),
        (lambda root: (root / "val").rename(root / "v"), r"no folder val \(or validation or test"),
        (lambda root: (root / "train").rename(root / "t"), "has no folder train; needed are"),
        (lambda root: _unlink_all(root / "val"), "val has no class folders"),
        (lambda root: root.rename(root.parent / "moved"), "there is no folder"),
    ],
)
def test_layout_errors_are_one_line(root, change, message):
    change(root)
    with pytest.raises(ValueError, match=message) as caught:
        open_image_folder(root, SIZE)
    assert "\n" not in str(caught.value)


def test_still_packed_and_empty_halves(root):
    _unlink_all(root / "train")
    (root / "train/n01.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train has no class folders; unpack n01\.tar"):
        open_image_folder(root, SIZE)
    for name in ("n01", "n02", "n10"):
        (root / "train" / name).mkdir()
    with pytest.raises(ValueError, match=r"train has no image \(\.jpg, .*\) in its class folders"):
        open_image_folder(root, SIZE)


def test_links_are_followed_and_loops_end(root, tmp_path):
    outside = tmp_path / "outside"
    _save(outside / "a.jpg", 50)
    _save(outside / "b.jpg", 51)
    folder = root / "train/n01"
    (folder / "linked.jpg").symlink_to(outside / "a.jpg")
    (folder / "zz folder").symlink_to(outside)
    (folder / "zzz again").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (outside / "loop").symlink_to(root / "train")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    images, _ = open_image_folder(root, SIZE)[0]
    found = [path.removeprefix("n01/") for path in images.paths if path.startswith("n01/")]
    # Through the loop of outside, all of train is below n01 once more, each folder once.
    assert [path for path in found if "loop" not in path] == sorted(
        ["cmyk.jpg", "dangling.jpg", "grey.png", "itself.jpg", "linked.jpg"]
        + [f"n01_{number}.JPEG" for number in range(5)]
        + ["zz folder/a.jpg", "zz folder/b.jpg"]
    )
    assert len(found) < 40
    links = [images.paths.index(f"n01/{name}") for name in ("linked.jpg", "zz folder/a.jpg")]
    assert np.array_equal(*images.read(links))
    images.read([images.paths.index(f"n01/{name}") for name in ("itself.jpg", "dangling.jpg")])
    assert len(images.unreadable) == 2


def _loader(root, **changes):
    (images, labels), *_ = open_image_folder(root, SIZE)
    arguments = {
        "batch_size": 4,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "max_value": 255.0,
        "num_classes": 3,
        "seed": 3,
        "drop_last": False,
    }
    return Loader(images, labels, **(arguments | changes))


def _bits(batches):
    return [(batch.index, batch.images.tobytes(), batch.labels.tolist()) for batch in batches]


@pytest.mark.parametrize("augment", ["none", "crop-flip", "resized-crop"])
def test_same_bits_for_any_number_of_threads_and_any_start(root, augment):
    wanted = [_bits(_loader(root, augment=augment, workers=1).epoch(epoch)) for epoch in range(2)]
    assert wanted[0] != wanted[1]
    assert [index for index, *_ in wanted[0]] == list(range(6))
    for workers in (1, 2, 7, None):
        for prefetch in (True, False):
            loader = _loader(root, augment=augment, workers=workers, prefetch=prefetch)
            # In this order the broken files are already known in epoch 0.
            assert _bits(loader.epoch(1)) == wanted[1]
            assert _bits(loader.epoch(0)) == wanted[0]
            for start in (1, 4, 6):
                fresh = _loader(root, augment=augment, workers=workers, prefetch=prefetch)
                assert _bits(fresh.epoch(0, start)) == wanted[0][start:]


@pytest.mark.parametrize(("prefetch", "ahead"), [(True, 8), (False, 0)])
def test_files_are_read_ahead_only_with_prefetch(root, prefetch, ahead, monkeypatch):
    read, real = [], ImageFiles.read_one
    monkeypatch.setattr(
        ImageFiles, "read_one", lambda self, *rest: (real(self, *rest), read.append(0))[0]
    )
    batches = _loader(root, prefetch=prefetch).epoch(0)
    for _ in range(2):
        next(batches)
    end = time.monotonic() + 5
    while len(read) < 8 + ahead and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(read) == 8 + ahead
    batches.close()


def test_default_augmentation_of_files_is_the_random_resized_crop(root):
    crop_flip, resized = (
        _bits(_loader(root, augment=augment).epoch(0)) for augment in ("crop-flip", "resized-crop")
    )
    assert crop_flip == resized != _bits(_loader(root).epoch(0))


@pytest.mark.parametrize("augment", ["none", "resized-crop"])
def test_batches_are_the_normalized_images_of_the_order(root, augment):
    loader = _loader(root, augment=augment)
    (files, labels), *_ = open_image_folder(root, SIZE)
    order = rng_for(3, "order", 5).permutation(21)
    for batch in loader.epoch(5):
        chosen = order[4 * batch.index : 4 * batch.index + 4]
        rngs = [rng_for(3, "augment", 5, batch.index, place) for place in range(len(chosen))]
        raw = files.read(chosen, None if augment == "none" else rngs)
        expected = (raw / 255 - IMAGENET_MEAN) / IMAGENET_STD
        assert batch.images.dtype == np.float32
        np.testing.assert_allclose(batch.images, expected, rtol=0, atol=1e-5)
        assert np.array_equal(batch.labels, labels[chosen])


def test_unreadable_are_counted_once(root):
    data = load_dataset("folder", data_dir=root, image_size=SIZE)
    assert data.unreadable == {}
    loader = train_loader(data, 4, augment="crop-flip")
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            pass
    for batch in test_loader(data, 4).epoch(0):
        assert len(batch.labels) in (2, 4)
    assert sorted(os.path.basename(path) for path in data.unreadable) == ["cut.JPG", "text.jpg"]


def test_dataset_of_files(root):
    data = load_dataset("folder", data_dir=root, image_size=SIZE)
    assert data.input_shape == (SIZE, SIZE, 3)
    assert data.num_classes == 3
    assert data.evaluated_on == "test"
    assert len(train_loader(data, 21)) == 1


def test_no_readable_image_is_an_error_that_ends_the_threads(root):
    for path in (root / "train").rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"broken")
    for prefetch in (True, False):
        with pytest.raises(ValueError, match="none of the 7 images of class n"):
            list(_loader(root, prefetch=prefetch).epoch(0))
    _no_threads()


def _no_threads():
    assert not [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]


def test_leaving_an_epoch_ends_the_threads(root):
    loader = _loader(root, augment="resized-crop", workers=3)
    for _ in loader.epoch(0):
        break
    _no_threads()
    for epoch in range(20):
        next(loader.epoch(epoch))
    _no_threads()


@pytest.mark.parametrize("prefetch", [True, False])
def test_waiting_is_added_up(root, prefetch, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("minicst.data.loader.time.perf_counter", lambda: now[0])
    loader = _loader(root, prefetch=prefetch)
    real = loader._batches

    def slow(*arguments):
        for batch in real(*arguments):
            now[0] += 2.0  # the time that a batch takes to come
            yield batch

    monkeypatch.setattr(loader, "_batches", slow)
    assert loader.waited_seconds == 0.0
    for batch in loader.epoch(0):
        now[0] += 100.0  # training
        assert loader.waited_seconds == 2.0 * (batch.index + 1)
    for _ in loader.epoch(1):
        break
    assert loader.waited_seconds == 14.0


def test_workers_below_one_are_an_error(root):
    with pytest.raises(ValueError, match="workers must be at least 1 thread, got 0"):
        _loader(root, workers=0)
