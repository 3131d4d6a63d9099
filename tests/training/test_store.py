"""A full model on disk: resumed bit for bit, and whole after a crash at any moment."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minicst.store
from minicst.backend.disk_backend import DiskBackend, forget, mapping
from minicst.checkpoint import read_arrays
from minicst.cli import main
from minicst.store import Store, full_arrays
from minicst.training import load_job

OPTIONS = [
    *("--network", "vgg-tiny", "--data", "digits", "--epochs", "2", "--limit", "160"),
    *("--batch-size", "16", "--test-limit", "40", "--dense-probes", "0"),
]


def train(out, *more):
    return main(["train", *OPTIONS, "--out", str(out), *more])


def full_of(folder):
    """{name: array} of the files of a run, by its index."""
    index = json.loads((folder / "full" / "index.json").read_text())
    return {name: np.load(folder / "full" / file) for name, file in index.items()}


def rows(folder):
    """metrics.jsonl without seconds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if "seconds" not in key}
        for line in lines
    ]


def same_result(a, b):
    one, other = np.load(a / "network.npz"), np.load(b / "network.npz")
    assert one.files == other.files
    for name in one.files:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert rows(a) == rows(b)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordinary") / "run"
    assert train(folder, "--resample-every", "3") == 0
    return folder


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_run_gives_what_an_ordinary_one_does(tmp_path, ordinary, where):
    assert train(tmp_path / "run", "--resample-every", "3", "--full-model", where) == 0
    same_result(ordinary, tmp_path / "run")


def test_files_hold_the_full_model(tmp_path, ordinary):
    assert train(tmp_path / "run", "--resample-every", "3", "--full-model", "disk") == 0
    _, checkpoint = read_arrays(ordinary / "checkpoint.npz", "checkpoint")
    held = full_of(tmp_path / "run")
    for name, array in held.items():
        key = f"optimizer/{name.replace('#', '/')}" if "#" in name else f"network/{name}"
        np.testing.assert_array_equal(array, checkpoint[key], err_msg=name)
    assert len(held) == sum(key.startswith(("network/", "optimizer/")) for key in checkpoint)
    small = (tmp_path / "run" / "checkpoint.npz").stat().st_size
    assert small < sum(array.nbytes for array in held.values())


CRASH = """
import os, sys
from pathlib import Path
import minicst.store
from minicst.backend.disk_backend import DiskBackend
from minicst.cli import main

where, number = sys.argv[1], int(sys.argv[2])
write, scatter = minicst.store.write_arrays, DiskBackend.scatter
position = minicst.store.Store.write_position
counts = dict.fromkeys(("journal", "scatter", "position"), 0)

def crash(what):
    counts[what] += 1
    if what == where and counts[what] == number:
        os._exit(9)

def write_arrays(path, kind, header, arrays):
    if kind == "journal":
        if where == "part" and not counts["journal"]:
            counts["journal"] += 1
        elif where == "part":  # half of the journal is on the disk, under its temporary name
            Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part").write_bytes(b"PK")
            os._exit(9)
        else:
            crash("journal")
    write(path, kind, header, arrays)

def scattered(self, full, entries, small):
    crash("scatter")
    scatter(self, full, entries[: entries.size // 2], small.reshape(-1)[: entries.size // 2])
    scatter(self, full, entries, small)

def write_position(self, where):
    crash("position")
    position(self, where)

minicst.store.write_arrays = write_arrays
DiskBackend.scatter = scattered
minicst.store.Store.write_position = write_position
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("where", "number", "said"),
    [
        ("part", 2, "interrupted before it was complete"),
        ("journal", 2, None),  # nothing was begun: only the steps since are lost
        ("scatter", 70, "completed from its journal"),
        ("position", 3, "completed from its journal"),
    ],
)
def test_a_crash_leaves_a_state_to_go_on_from(
    tmp_path, ordinary, where, number, said, capsys, monkeypatch
):
    script, folder = tmp_path / "crash.py", tmp_path / "run"
    script.write_text(CRASH)
    options = ["train", *OPTIONS, "--resample-every", "3", "--full-model", "disk"]
    options += ["--out", str(folder)]
    crashed = subprocess.run([sys.executable, script, where, str(number), *options], check=False)
    assert crashed.returncode == 9
    assert not (folder / "summary.json").exists()
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["train", "--resume", str(folder)]
    if where == "part":  # once as users do
        command = [sys.executable, "-m", "minicst", *arguments]
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        out = again.stdout
    else:
        assert main(arguments) == 0
        out = capsys.readouterr().out
    if said is not None:
        assert said in " ".join(out.split())
    same_result(ordinary, folder)
    assert not list((folder / "full").glob("*journal*"))
    assert not list((folder / "full").glob(".*"))


def test_at_most_a_block_of_steps_is_lost(tmp_path):
    script, folder = tmp_path / "crash.py", tmp_path / "run"
    script.write_text(CRASH)
    options = ["train", *OPTIONS, "--resample-every", "3", "--full-model", "disk"]
    options += ["--out", str(folder)]
    subprocess.run([sys.executable, script, "part", "2", *options], check=False)
    job = load_job(folder)
    # Writes come at steps 3 and 6; the second one was interrupted.
    assert job.method.step == job.totals.steps == job.totals.batch == 3
    assert re.search("interrupted", job.recovered)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run of four steps, stopped with its checkpoint written."""
    folder, asked = tmp_path / "run", []

    def stop():
        asked.append(1)
        return len(asked) >= 4

    import contextlib

    import minicst.cli

    monkeypatch.setattr(minicst.cli, "_stop_on_interrupt", lambda: contextlib.nullcontext(stop))
    assert train(folder, "--full-model", "disk", "--resample-every", "3") == 130
    monkeypatch.undo()
    return folder


def test_a_stopped_run_goes_on(stopped, ordinary):
    assert main(["train", "--resume", str(stopped)]) == 0
    same_result(ordinary, stopped)


def test_bad_files_are_said_in_one_line(stopped, capsys):
    file = stopped / "full" / "0003.npy"
    whole = file.read_bytes()
    for content, words in (
        (None, "missing or damaged"),
        (b"\x93NUMPY", "missing or damaged"),
        ((stopped / "full" / "0000.npy").read_bytes(), "is another network's"),
    ):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        assert main(["train", "--resume", str(stopped)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        file.write_bytes(whole)
    (stopped / "full").rename(stopped / "moved")
    assert main(["train", "--resume", str(stopped)]) == 2
    assert "there is no full model in" in capsys.readouterr().err


def test_a_damaged_journal_changes_nothing(stopped, capsys):
    before = full_of(stopped)
    (stopped / "full" / "journal.npz").write_bytes(b"PK\x03\x04 not a journal")
    assert main(["train", "--resume", str(stopped)]) == 2
    assert "journal.npz is damaged" in capsys.readouterr().err
    for name, array in full_of(stopped).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--full-model", "disk", "--method", "dense"], "needs the whole network on the device"),
        (["--full-model", "host", "--method", "ste"], "needs the whole network on the device"),
        (["--full-model", "disk", "--controls"], "can't be combined with --controls"),
        (["--full-model", "host", "--backward-masks", "2"], "--backward-masks 1"),
    ],
)
def test_what_can_not_be_combined(tmp_path, capsys, more, words):
    assert train(tmp_path / "run", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_room_on_the_disk(tmp_path, capsys, monkeypatch):
    def full(descriptor, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert train(tmp_path / "run", "--full-model", "disk") == 2
    error = capsys.readouterr().err
    assert "No space left on device; free some space or choose another folder with --out" in error
    assert not (tmp_path / "run").exists()


def test_prepare_needs_a_folder():
    from minicst.job import prepare
    from minicst.settings import TrainSettings

    with pytest.raises(ValueError, match="needs a run folder"):
        prepare(TrainSettings(network="vgg-tiny", data="digits", full_model="disk"))


# The files' own backend.


def test_arrays_are_files_and_stay(tmp_path, rng):
    disk = DiskBackend(tmp_path)
    zeros, values = disk.zeros((3, 4), np.float32), rng.normal(size=(5, 2))
    kept = disk.as_state(values)
    assert mapping(disk.as_state(kept)) is mapping(
        kept
    )  # what is a file already stays the same one
    assert len(disk.files) == 2
    zeros[1] = 7.0
    disk.flush()
    assert mapping(kept) is not None
    assert mapping(values) is None
    again = DiskBackend(tmp_path, fresh=False)
    np.testing.assert_array_equal(again.zeros((3, 4), np.float32), zeros)
    np.testing.assert_array_equal(again.as_state(np.zeros((5, 2))), values)
    assert disk.n_bytes == zeros.nbytes + values.nbytes


def test_gather_and_scatter_over_many_windows(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(minicst.backend.disk_backend, "WINDOW_BYTES", 64)
    disk = DiskBackend(tmp_path)
    values = rng.normal(size=(9, 3, 3, 7))
    full = disk.as_state(values)
    rows, columns = np.array([0, 3, 8]), np.array([1, 2, 6])
    small = np.empty((3, 3, 3, 3))
    disk.gather(full, disk.entries(full.shape, rows, columns), small)
    np.testing.assert_array_equal(small, values[rows][..., columns])
    disk.scatter(full, disk.entries(full.shape, rows, columns), -small)
    values[np.ix_(rows, range(3), range(3), columns)] *= -1
    np.testing.assert_array_equal(full, values)
    forget(full)
    np.testing.assert_array_equal(full, values)


def test_full_arrays_name_optimizer_state(tmp_path):
    store = Store(tmp_path, fresh=True)
    from minicst.backend import using
    from minicst.models import build
    from minicst.optim import SGD

    with using(store.backend):
        network = build(name="vgg-tiny", num_classes=3, in_channels=1, image_size=8, seed=0)
    arrays = full_arrays(network, SGD(network, 0.1, 0.9))
    assert "classifier.transform.weight#velocity" in arrays
    assert all(mapping(array) is not None for array in arrays.values())
    assert Path(store.folder).is_dir()
