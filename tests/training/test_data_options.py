"""Options of data: validation, test images, checksums, image folders, waiting."""

import gzip
import json
import struct
import time
import weakref

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from minicst.cli import main
from minicst.data import Loader, load_dataset
from minicst.display import final_table
from minicst.job import Totals, limit_test, prepare
from minicst.methods.base import evaluate, evaluate_all, recalibrate, recalibrate_all
from minicst.methods.trace import StepTrace
from minicst.models import build
from minicst.nn import clone
from minicst.randomness import rng_for
from minicst.settings import TrainSettings
from minicst.training import Stopped, resume, train

SMALL = {
    "network": "vgg-tiny",
    "data": "digits",
    "width": 0.25,
    "epochs": 1,
    "batch_size": 256,
    "dense_probes": 0,
    "recalibration_batches": 1,
    "threads": 1,
}


def settings_of(**changes):
    return TrainSettings(**(SMALL | changes))


def rows_of(images):
    """The images as a set of bytes: which ones, not in which order."""
    return {image.tobytes() for image in images}


# Validation


def test_validation_takes_training_images_and_leaves_the_test_images_alone():
    whole = load_dataset("digits")
    data = prepare(settings_of(validation=0.25)).dataset
    assert data.evaluated_on == "validation"
    n_train, n_held = len(data.train_labels), len(data.test_labels)
    assert n_train + n_held == len(whole.train_labels) == 1437
    for label in range(10):  # of each class the same share
        members = (whole.train_labels == label).sum()
        assert (data.test_labels == label).sum() == np.floor(0.25 * members + 0.5)
    train_rows, held_rows = rows_of(data.train_images), rows_of(data.test_images)
    assert train_rows | held_rows == rows_of(whole.train_images)
    assert not train_rows & held_rows
    assert not held_rows & rows_of(whole.test_images)
    other_seed = prepare(settings_of(validation=0.25, seed=5)).dataset
    np.testing.assert_array_equal(other_seed.test_images, data.test_images)


def test_validation_accuracy_is_called_so(capsys, tmp_path):
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    out = tmp_path / "run"
    assert main(["train", *options, "--validation", ".25", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["evaluated_on"] == "validation"
    assert summary["test_images"] == len(prepare(settings_of(validation=0.25)).dataset.test_labels)
    (line,) = [x for x in shown.splitlines() if "validation accuracy, final network" in x]
    assert line.strip().endswith(f"on {summary['test_images']} images")
    assert "test accuracy" not in shown
    # Folders of runs that were made before know of no such thing.
    del summary["evaluated_on"], summary["data_wait_seconds"], summary["unreadable_files"]
    del summary["recipe"], summary["keep_macs"], summary["keep_params"]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(final_table(summary, {}))
    assert "test accuracy, final network" in capture.get()


# Test images


@pytest.mark.parametrize("limit", [1, 7, 359])
def test_test_images_are_evenly_spaced(limit):
    data = load_dataset("digits")
    few = limit_test(data, limit)
    chosen = [k * 360 // limit for k in range(limit)]
    np.testing.assert_array_equal(few.test_images, data.test_images[chosen])
    np.testing.assert_array_equal(few.test_labels, data.test_labels[chosen])
    assert chosen[0] == 0
    assert max(np.diff(chosen), default=0) - min(np.diff(chosen), default=0) <= 1
    assert few.train_images is data.train_images
    assert few.mean == data.mean
    assert few.evaluated_on == data.evaluated_on


def test_as_many_test_images_as_there_are_or_more():
    data = load_dataset("digits")
    assert limit_test(data, 360) is data
    assert limit_test(data, 10**6) is data


def test_a_trial_of_a_recipe_evaluates_as_many_images_as_it_trains_on():
    def images(**changes):
        small = {"data": "digits", "network": "vgg-tiny", "batch_size": 16} | changes
        return len(
            prepare(TrainSettings.of_preset(None, "table2-vgg16", **small)).dataset.test_labels
        )

    assert images() == 360
    assert images(limit=64) == 64
    assert images(limit=64, test_limit=9) == 9
    assert images(test_limit=9) == 9
    assert len(prepare(settings_of(limit=300)).dataset.test_labels) == 360  # no recipe
    assert len(prepare(settings_of(test_limit=5)).dataset.test_labels) == 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_limit": 0}, "--test-limit 0: it must be at least 1"),
        ({"validation": 1.0}, r"--validation 1.0: it must be a share of the images in \[0, 1\)"),
        ({"validation": -0.1}, "--validation -0.1"),
        ({"validation": float("nan")}, "--validation nan"),
        ({"image_size": 0}, "--image-size 0: it must be at least 1"),
        ({"keep_macs": "20%", "keep_params": "20%"}, "--keep-macs and --keep-params both"),
        ({"keep_macs": "870%"}, r"--keep-macs 870%: a share in \(0, 1\]"),
        ({"keep_params": "0"}, r"--keep-params 0: a share in \(0, 1\]"),
    ],
    ids=str,
)
def test_impossible_options(changes, says):
    with pytest.raises(ValueError, match=says):
        prepare(settings_of(**changes))


# Keep rate of a share


def test_a_share_of_the_macs_sets_the_keep_rate_of_the_job():
    job = prepare(settings_of(keep_macs="20%", keep_rate=0.9))
    layers = job.method.dense_count.layers
    dense = sum(layer.macs for layer in layers)
    ends = layers[0].macs + layers[-1].macs  # a chain: they fall as rho, the others as rho^2
    rho = job.settings.keep_rate
    assert ends * rho + (dense - ends) * rho**2 == pytest.approx(0.2 * dense, rel=1e-9)
    assert job.method.budget == pytest.approx(rho * job.full_network.n_maskable, rel=1e-12)
    assert job.method.keep_prob == pytest.approx(rho)
    assert job.settings.keep_macs == "20%"
    other = prepare(settings_of(keep_params="20%")).settings.keep_rate
    assert other != pytest.approx(rho, rel=1e-3)
    assert prepare(settings_of(method="dense", keep_macs="20%")).settings.keep_rate == 0.5


# Checksums


def write_mnist(folder):
    """The four files of MNIST's layout, 20 and 6 images; not the published bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for half, count in (("train", 20), ("t10k", 6)):
        images = struct.pack(">BBBBIII", 0, 0, 8, 3, count, 28, 28)
        images += rng.integers(0, 256, count * 784, np.uint8).tobytes()
        labels = struct.pack(">BBBBI", 0, 0, 8, 1, count) + bytes(i % 10 for i in range(count))
        (folder / f"{half}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{half}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def test_no_verify_reaches_the_reader(tmp_path, capsys):
    folder = write_mnist(tmp_path / "mnist")
    options = ["train", "--data", "mnist", "--data-dir", str(folder), "--network", "vgg-tiny"]
    options += ["--width", ".25", "--epochs", "1", "--batch-size", "10", "--dense-probes", "0"]
    assert main([*options, "--out", str(tmp_path / "refused")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "published" in error
    assert not (tmp_path / "refused").exists()
    assert main([*options, "--no-verify", "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["test_images"]) == (2, 6)
    assert str(folder) in summary["data_source"]
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["verify"] is False
    assert settings["data_dir"] == str(folder)


# Image folders


@pytest.fixture
def image_folder(tmp_path):
    """Three classes of 5 and 2 images, of several sizes; one file of the training half is none."""
    root, rng = tmp_path / "images", np.random.default_rng(0)
    for label in range(3):
        for half, count in (("train", 5), ("val", 2)):
            folder = root / half / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                size = (40 + 3 * number, 50 - 4 * label, 3)
                pixels = rng.integers(0, 80, size) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    (root / "train" / "class1" / "broken.jpg").write_bytes(b"no image")
    return root


def test_mobilenet_on_an_image_folder_from_end_to_end(image_folder, tmp_path, capsys):
    options = ["--data", "folder", "--data-dir", str(image_folder), "--image-size", "32"]
    options += ["--network", "mobilenetv1", "--width", ".25", "--batch-size", "4"]
    options += ["--augment", "resized-crop", "--epochs", "2", "--dense-probes", "0"]
    options += ["--recalibration-batches", "2", "--keep-macs", "50%"]
    assert main(["train", *options, "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["unreadable_files"] == 1
    assert summary["test_images"] == 6
    assert summary["steps"] == 2 * (16 // 4)
    assert "16 images of 3 classes in train, 6 in val" in summary["data_source"]
    assert summary["params_dense"] == build("mobilenetv1", 3, width=0.25).n_parameters()
    assert summary["macs_expected"] / summary["macs_dense"] < 0.75
    assert "unreadable files, others shown" in out
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    waited = sum(row["data_wait_seconds"] for row in rows)
    assert summary["data_wait_seconds"] == pytest.approx(waited, abs=1e-9)


def test_unreadable_files_are_counted_over_a_whole_run(image_folder, tmp_path, monkeypatch):
    """Also those that were met before a resume; none twice."""
    monkeypatch.chdir(tmp_path)
    options = {"data": "folder", "data_dir": image_folder.relative_to(tmp_path), "image_size": 16}
    settings = settings_of(**options, batch_size=4, epochs=2, augment="resized-crop")
    (image_folder / "train" / "class2" / "broken.jpg").write_bytes(b"none either")
    folder = tmp_path / "run"
    folder.mkdir()
    job = prepare(settings)
    with pytest.raises(Stopped):
        train(job, folder, stop=lambda: job.totals.epoch == 1)
    assert len(job.unreadable_files()) == 2
    whole = Image.new("RGB", (20, 20))
    whole.save(image_folder / "train" / "class1" / "broken.jpg")
    (image_folder / "train" / "class0" / "1.png").write_bytes(b"spoiled in between")
    job = resume(folder)
    assert job.dataset.unreadable == {}
    _, summary = train(job, folder)
    assert len(job.dataset.unreadable) == 2  # one of them is new
    names = ["class0/1.png", "class1/broken.jpg", "class2/broken.jpg"]
    assert job.unreadable_files() == [str(image_folder / "train" / name) for name in names]
    assert summary["unreadable_files"] == 3


def test_test_images_of_a_folder_are_evenly_spaced_files(image_folder):
    options = {"data": "folder", "data_dir": image_folder, "image_size": 16, "batch_size": 4}
    data = prepare(settings_of(**options, test_limit=3)).dataset
    assert data.test_images.paths == ["class0/0.png", "class1/0.png", "class2/0.png"]
    np.testing.assert_array_equal(data.test_labels, [0, 1, 2])
    assert data.input_shape == (16, 16, 3)
    held = prepare(settings_of(**options, validation=0.4)).dataset
    assert held.evaluated_on == "validation"
    assert str(held.test_images.folder).endswith("train")
    assert not set(held.test_images.paths) & set(held.train_images.paths)
    assert len(held.test_labels) == 6
    # Not padded to 32 as arrays are: images of a folder have the size that was asked for.
    assert prepare(settings_of(**options | {"network": "resnet20"})).dataset.input_shape[0] == 16


def test_a_folder_needs_a_place(capsys):
    with pytest.raises(ValueError, match="--data-dir"):
        prepare(settings_of(data="folder"))


# Waiting


def test_seconds_that_training_waits_are_counted(tmp_path):
    job, batches = prepare(settings_of(epochs=2)), 2 * 5
    make = job.loader._batches

    def slow(*arguments):
        for batch in make(*arguments):
            time.sleep(0.01)
            yield batch

    job.loader._batches = slow
    _, summary = train(job, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["data_wait_seconds"] >= 0.01 * batches / 2 for row in rows)
    assert summary["data_wait_seconds"] >= 0.01 * batches
    total = sum(row["data_wait_seconds"] for row in rows)
    assert summary["data_wait_seconds"] == pytest.approx(total, abs=1e-9)
    assert summary["data_wait_seconds"] <= job.loader.waited_seconds


def test_waiting_is_no_part_of_a_step():
    totals = Totals()
    trace = StepTrace(0, (1.0,), passes=(1, 1), seconds={"update": 0.5})
    trace.macs, trace.macs_dense, trace.cost_ratio = {}, {}, 1.0
    for waited in (0.25, 0.0, 2.0):
        totals.add(trace, waited)
    assert totals.wait_seconds == 2.25
    assert totals.epoch_sums["waited"] == 2.25
    assert totals.step_seconds == 1.5


# Recalibration


def test_recalibration_batches_are_training_images_in_an_order_of_their_own():
    job = prepare(settings_of(batch_size=128, recalibration_batches=3, augment="crop-flip"))
    data = job.dataset
    order = rng_for(0, "order", 2**31).permutation(1437)
    again = job.recalibration_batches()
    for _ in range(2):  # they can be run through twice
        batches = list(again)
        assert len(batches) == 3
        for i, batch in enumerate(batches):
            chosen = order[128 * i : 128 * (i + 1)]
            raw = data.train_images[chosen].astype(float)
            exact = (raw / data.max_value - data.mean) / data.std
            np.testing.assert_allclose(batch.images, exact, atol=1e-5)
            np.testing.assert_array_equal(batch.labels, data.train_labels[chosen])
    many = prepare(settings_of(batch_size=512, recalibration_batches=16))
    assert len(list(many.recalibration_batches())) == 1437 // 512


@pytest.mark.parametrize("final_mask", ["sample", "best-of-10"])
def test_recalibration_holds_two_batches_at_most(final_mask, monkeypatch):
    """The one in use, and the next one while it is made; 16 of ImageNet's take 2.5 GB."""
    alive, most = weakref.WeakSet(), []
    make = Loader._make

    def counted(self, array, epoch, index, order):
        batch = make(self, array, epoch, index, order)
        if epoch == 2**31:
            alive.add(batch)
            most.append(len(alive))
        return batch

    monkeypatch.setattr(Loader, "_make", counted)
    options = {"batch_size": 128, "recalibration_batches": 6, "final_mask": final_mask}
    train(prepare(settings_of(**options, fine_tune=0.5, epochs=2)))
    assert max(most) <= 2
    # One reading for all candidates, one for the final network; to choose, two more.
    assert len(most) == 6 * (4 if final_mask == "best-of-10" else 2)


def test_recalibrate_all_sets_what_recalibrate_sets():
    networks = [build("vgg-tiny", 10, 1, width=0.25, seed=seed) for seed in range(3)]
    twins = [clone(network) for network in networks]
    batches = list(prepare(settings_of(recalibration_batches=3)).recalibration_batches())
    recalibrate_all(networks, iter(batches))
    for network, twin in zip(networks, twins, strict=True):
        before = {name: array.copy() for name, array in twin.state().items()}
        recalibrate(twin, batches)
        for name, array in twin.state().items():
            np.testing.assert_array_equal(network.state()[name], array, name)
        assert any((before[name] != array).any() for name, array in twin.state().items())
        assert {norm.momentum for norm in network.norms().values()} == {0.1}


# Scoring many networks


def test_evaluate_all_reads_the_batches_once_and_scores_each():
    data = load_dataset("digits")
    networks = [build("vgg-tiny", 10, 1, width=0.25, seed=seed) for seed in range(3)]
    job = prepare(settings_of())
    batches = list(job.test_batches())
    assert len(batches) == 2  # 250 and 110 images: the mean weighs them
    found = evaluate_all(networks, iter(batches))
    images = np.concatenate([batch.images for batch in batches])
    for network, (accuracy, loss) in zip(networks, found, strict=True):
        logits = network(images).data
        assert accuracy == (logits.argmax(axis=1) == data.test_labels).mean()
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(360), data.test_labels]
        assert loss == pytest.approx(logs.mean(), rel=1e-5)
        assert evaluate(network, iter(batches)) == (accuracy, loss)
    assert len({loss for _, loss in found}) == 3


def test_scores_of_candidates_are_their_accuracies():
    job = prepare(settings_of())
    _, summary = train(job)
    batches, data = job.recalibration_batches(), job.dataset
    images = np.concatenate([batch.images for batch in job.test_batches()])
    found = {}
    (group,) = job.method.candidates()  # keep_prob rests: the same masks again
    for kind, network in group:
        recalibrate(network, batches)
        right = network(images).data.argmax(axis=1) == data.test_labels
        found.setdefault(kind, []).append(float(right.mean()))
    assert len(found["samples"]) == 10
    assert job.totals.scores == found
    assert summary["test_accuracy_samples"]["mean"] == pytest.approx(np.mean(found["samples"]))
    assert summary["test_accuracy_top_k"] == found["top_k"][0]
