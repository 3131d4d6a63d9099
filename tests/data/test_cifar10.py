"""The reader of CIFAR-10 against a miniature written value by value in the published layout."""

import dataclasses
import json

import numpy as np
import pytest

import minicst.data.cifar10 as module
from minicst.cli import main
from minicst.data import load_dataset, train_loader
from minicst.job import prepare
from minicst.settings import TrainSettings

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
SIZES = (4, 3, 5, 1, 2, 6)  # images in each file


def write_miniature(parent, sizes=SIZES):
    """Write the six files and the names; return (n, 32, 32, 3) and (n,) of each file."""
    rng = np.random.default_rng(3)
    folder = parent / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")  # as published
    written = []
    for file_name, size in zip(FILES, sizes, strict=True):
        images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 10, size)
        content = bytearray()
        for image, label in zip(images, labels, strict=True):
            content.append(label)
            for channel in range(3):
                for row in range(32):
                    content += bytes(image[row, :, channel].tolist())
        assert len(content) == 3073 * size
        (folder / file_name).write_bytes(content)
        written.append((images, labels))
    return folder, written


@pytest.fixture
def mini(tmp_path):
    return write_miniature(tmp_path)


def test_images_and_labels_are_those_written(mini):
    folder, written = mini
    data = load_dataset("cifar10", data_dir=folder)
    assert data.name == "cifar10"
    assert np.array_equal(data.train_images, np.concatenate([images for images, _ in written[:5]]))
    assert np.array_equal(data.train_labels, np.concatenate([labels for _, labels in written[:5]]))
    assert np.array_equal(data.test_images, written[5][0])
    assert np.array_equal(data.test_labels, written[5][1])
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.train_images.flags.c_contiguous
    assert data.class_names == NAMES
    assert (data.input_shape, data.num_classes, data.max_value) == ((32, 32, 3), 10, 255.0)


def test_a_pixel_by_its_byte_in_the_file(mini):
    """Red, green and blue of row 2, column 7 lie at 1 + 2 * 32 + 7 and 1024, 2048 further."""
    folder, _ = mini
    data = load_dataset("cifar10", data_dir=folder)
    content = (folder / "data_batch_3.bin").read_bytes()
    record = content[3073 * 4 : 3073 * 5]
    image = 4 + 3 + 4  # after the first two files
    assert data.train_labels[image] == record[0]
    at = 1 + 2 * 32 + 7
    assert data.train_images[image, 2, 7].tolist() == [record[at + 1024 * c] for c in range(3)]


def test_statistics_are_those_of_the_training_images(mini, monkeypatch):
    import minicst.data.datasets as datasets

    monkeypatch.setattr(datasets, "_COUNTED_AT_ONCE", 4)  # 15 images: the last part is smaller
    folder, written = mini
    data = load_dataset("cifar10", data_dir=folder)
    scaled = np.concatenate([images for images, _ in written[:5]]) / 255.0
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_folder_or_its_parent_as_path_or_text(mini):
    folder, _ = mini
    wanted = load_dataset("cifar10", data_dir=folder)
    for place in (folder.parent, str(folder), str(folder.parent)):
        data = load_dataset("cifar10", data_dir=place)
        assert np.array_equal(data.train_images, wanted.train_images)
        assert data.source == wanted.source
    assert "CIFAR-10" in wanted.source
    assert str(folder) in wanted.source
    assert "\n" not in wanted.source


def test_another_name_of_the_folder(mini):
    folder, _ = mini
    renamed = folder.rename(folder.parent / "mine")
    assert len(load_dataset("cifar10", data_dir=renamed).train_labels) == 15


def test_arrays_are_read_only_and_no_views_of_the_files(mini):
    folder, written = mini
    data = load_dataset("cifar10", data_dir=folder)
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    for file_name in FILES:  # what happens to the files later doesn't matter
        (folder / file_name).write_bytes(bytes(3073))
    assert np.array_equal(data.test_images, written[5][0])
    assert np.array_equal(data.train_images[:4], written[0][0])


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 12, 15])
def test_limit_is_the_first_images_in_the_order_of_the_files(mini, limit):
    folder, written = mini
    data = load_dataset("cifar10", data_dir=folder, limit=limit)
    images = np.concatenate([images for images, _ in written[:5]])[:limit]
    labels = np.concatenate([labels for _, labels in written[:5]])[:limit]
    assert np.array_equal(data.train_images, images)
    assert np.array_equal(data.train_labels, labels)
    assert np.array_equal(data.test_images, written[5][0])
    np.testing.assert_allclose(data.mean, (images / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, (images / 255.0).std(axis=(0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize(("limit", "message"), [(16, "cifar10 has 15 training"), (0, "at least 1")])
def test_limit_out_of_range(mini, limit, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", data_dir=mini[0], limit=limit)


def test_no_more_is_read_than_asked_for(mini):
    folder, written = mini
    content = bytearray((folder / "data_batch_2.bin").read_bytes())
    content[0] = 10
    (folder / "data_batch_2.bin").write_bytes(content)
    data = load_dataset("cifar10", data_dir=folder, limit=4)
    assert np.array_equal(data.train_images, written[0][0])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin has label 10 in record 0"):
        load_dataset("cifar10", data_dir=folder, limit=5)


def test_files_of_published_size(tmp_path):
    folder, _ = write_miniature(tmp_path)
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (10_000, 3073), np.uint8)
    records[:, 0] %= 10
    records.tofile(folder / "data_batch_1.bin")
    assert (folder / "data_batch_1.bin").stat().st_size == 30_730_000
    data = load_dataset("cifar10", data_dir=folder, limit=10_000)
    assert np.array_equal(data.train_labels, records[:, 0])
    assert np.array_equal(data.train_images[9_999, 31, 31], records[9_999, [1024, 2048, 3072]])


def test_pad_to(mini):
    plain = load_dataset("cifar10", data_dir=mini[0])
    assert np.array_equal(
        load_dataset("cifar10", 32, data_dir=mini[0]).test_images, plain.test_images
    )
    padded = load_dataset("cifar10", 40, data_dir=mini[0])
    assert np.array_equal(padded.test_images[:, 4:36, 4:36], plain.test_images)
    assert padded.mean == plain.mean


def test_loader_gives_batches(mini):
    loader = train_loader(load_dataset("cifar10", data_dir=mini[0]), 4, augment="crop-flip")
    shapes = [batch.images.shape for batch in loader.epoch(0)]
    assert shapes == [(4, 32, 32, 3)] * 3


# Errors


def one_line_error(match, **arguments):
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset("cifar10", **arguments)
    assert "\n" not in str(caught.value)


def test_no_folder_given():
    one_line_error(
        r"^cifar10 isn't inside the package: give --data-dir FOLDER with cifar-10-batches-bin$"
    )


def test_folder_that_is_not_there(tmp_path):
    one_line_error("there is no folder .*nowhere", data_dir=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    one_line_error("there is no folder .*file", data_dir=tmp_path / "file")


@pytest.mark.parametrize("file_name", [*FILES, "batches.meta.txt"])
def test_missing_file(mini, file_name):
    (mini[0] / file_name).unlink()
    one_line_error(f"has no file {file_name}; .*cifar-10-binary", data_dir=mini[0])
    (mini[0] / file_name).mkdir()
    one_line_error(f"has no file {file_name}", data_dir=mini[0], limit=1)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 3073 * 2 - 1])
@pytest.mark.parametrize("file_name", ["data_batch_4.bin", "test_batch.bin"])
def test_truncated_file(mini, file_name, size):
    (mini[0] / file_name).write_bytes(bytes(size))
    # Also where the limit needs none of the file: a damaged copy shows at once.
    for limit in (None, 1):
        one_line_error(f"{file_name} has {size} bytes", data_dir=mini[0], limit=limit)


@pytest.mark.parametrize("label", [10, 255])
@pytest.mark.parametrize(("file_name", "record"), [("data_batch_3.bin", 4), ("test_batch.bin", 0)])
def test_label_above_nine(mini, file_name, record, label):
    path = mini[0] / file_name
    content = bytearray(path.read_bytes())
    content[3073 * record] = label
    path.write_bytes(content)
    one_line_error(f"{file_name} has label {label} in record {record} ", data_dir=mini[0])


@pytest.mark.parametrize("text", ["", "cat\ndog\n", "\n".join([*NAMES, "person"])])
def test_class_names_must_be_ten(mini, text):
    (mini[0] / "batches.meta.txt").write_text(text)
    one_line_error(r"class names where 10 are needed", data_dir=mini[0])


def test_names_that_are_no_text(mini):
    (mini[0] / "batches.meta.txt").write_bytes(bytes(range(128, 256)))
    one_line_error(r"class names where 10 are needed", data_dir=mini[0])


def test_nothing_is_unpickled():
    source = module.Path(module.__file__).read_text(encoding="utf-8")
    assert "pickle" not in source
    assert "np.load" not in source


# Settings and command line


def test_settings_survive_json(tmp_path):
    settings = TrainSettings(data="cifar10", data_dir=tmp_path, limit=512)
    data = json.loads(json.dumps(settings.as_json()))
    assert TrainSettings.from_json(data) == settings
    for key in ("data_dir", "limit"):  # a run from before these settings
        del data[key]
    assert TrainSettings.from_json(data) == dataclasses.replace(settings, data_dir=None, limit=None)


def test_prepare_hands_folder_and_limit_on(mini):
    settings = TrainSettings(data="cifar10", data_dir=mini[0], limit=7, batch_size=3)
    job = prepare(dataclasses.replace(settings, network="vgg-tiny", width=0.25))
    assert len(job.dataset.train_labels) == 7
    assert len(job.loader) == 2


def test_train_from_the_command_line(mini, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", "--data", "cifar10", "--network", "vgg-tiny", "--width", "0.25"]
    arguments += ["--epochs", "1", "--batch-size", "4", "--dense-probes", "0", "--threads", "1"]
    given = ["--data-dir", str(mini[0].parent), "--limit", "9", "--out", str(out)]
    assert main([*arguments, *given]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["data"] == "cifar10"
    assert summary["test_images"] == 6
    assert TrainSettings.from_json(json.loads((out / "settings.json").read_text())).limit == 9
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: cifar10 isn't inside the package")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "no").exists()
