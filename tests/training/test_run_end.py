"""What a run leaves behind when it is cut short, and when its last steps can't be written."""

import ast
import dataclasses
import inspect
import io
import itertools
import json
import os
import signal
import textwrap

import numpy as np
import pytest
from rich.console import Console

from minicst import checkpoint
from minicst.bench import BenchSettings
from minicst.cli import main
from minicst.counts import MacsSettings
from minicst.display import LiveDisplay, final_table, human
from minicst.graph import GraphSettings
from minicst.info import InfoSettings
from minicst.inspect_step import StepSettings
from minicst.planted import PlantedSettings
from minicst.recipe_table import RecipesSettings
from minicst.runs import finished
from minicst.settings import PRESETS, TrainSettings
from minicst.sparse import count_macs
from minicst.training import Silent, Stopped, prepare, resume, run_controls, train
from minicst.variance.command import VarianceSettings

SMALL = ["--data", "digits", "--network", "vgg-tiny", "--width", ".25", "--batch-size", "256"]


def settings_of(**changes):
    small = {
        "network": "vgg-tiny",
        "data": "digits",
        "width": 0.25,
        "epochs": 2,
        "batch_size": 256,
        "dense_probes": 0,
        "fine_tune": 0.0,
        "recalibration_batches": 2,
        "threads": 1,
    }
    return TrainSettings(**(small | changes))


def timeless(summary):
    return {k: v for k, v in summary.items() if "second" not in k and "memory" not in k}


@pytest.mark.parametrize("changes", [{}, {"fine_tune": 0.5}, {"resample_every": 3}], ids=str)
def test_a_run_killed_after_its_last_epoch_is_finished_by_resume(tmp_path, changes, monkeypatch):
    settings = settings_of(**changes)
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    _, summary = train(prepare(settings), folders[0])
    with monkeypatch.context() as patch:
        patch.setattr("minicst.training.save", lambda *_: None)
        patch.setattr("minicst.training.write_text", _fail)
        with pytest.raises(OSError, match="killed"):
            train(prepare(settings), folders[1])
    assert finished(folders[1]) is None
    _, same = train(resume(folders[1]), folders[1])
    assert timeless(same) == timeless(summary)
    networks = [dict(np.load(folder / "network.npz")) for folder in folders]
    for name, array in networks[0].items():
        np.testing.assert_array_equal(networks[1][name], array, name)


def _fail(*_):
    raise OSError("killed")


@pytest.mark.parametrize("tail", ['{"epoch": 2}\n{"epoch": 3}\n', '{"epo'])
def test_resume_cuts_metrics_back_to_the_checkpoint(tmp_path, tail):
    job = prepare(settings_of())
    with pytest.raises(Stopped):
        train(job, tmp_path, stop=lambda: job.method.step >= 5)
    metrics = tmp_path / "metrics.jsonl"
    row = metrics.read_text()
    assert json.loads(row)["epoch"] == 1
    metrics.write_text(row + tail)
    job = resume(tmp_path)
    assert metrics.read_text() == row
    train(job, tmp_path)
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    checkpoint.write_text(path, "old\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        with pytest.raises(ValueError, match=r"No space left.*unchanged"):
            checkpoint.write_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.write_text(path, "new\n")
    assert path.read_text() == "new\n"


def _full(*_):
    raise OSError(28, "No space left on device")


def test_a_damaged_summary_says_what_to_do(tmp_path, capsys):
    (tmp_path / "summary.json").write_text('{"method": ')
    assert main(["train", "--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "summary.json is damaged" in error
    assert "delete it" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, arrays: header.pop("totals"), "totals"),
        (lambda header, arrays: header["settings"].update(epochs=0), "epochs"),
        (lambda header, arrays: header["settings"].update(colour=1), "unknown setting 'colour'"),
        (lambda header, arrays: header["totals"].update(colour=1), "colour"),
        (lambda header, arrays: header["settings"].update(width=0.5), "shape"),
        (lambda header, arrays: arrays.pop("keep_prob"), "lacks 'keep_prob'"),
        (lambda header, arrays: arrays.pop("mask"), "mask"),
        (lambda header, arrays: arrays.pop("network/conv1.transform.weight"), "conv1"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path, capsys, change, message):
    job = prepare(settings_of())
    with pytest.raises(Stopped):
        train(job, tmp_path, stop=lambda: job.method.step >= 2)
    path = tmp_path / "checkpoint.npz"
    header, arrays = checkpoint.read_arrays(path, "checkpoint")
    change(header, arrays)
    header = {k: v for k, v in header.items() if k in ("settings", "totals")}
    checkpoint.write_arrays(path, "checkpoint", header, arrays)
    saved = path.read_bytes()
    assert main(["train", "--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "can't be resumed" in error
    assert message in error
    assert path.read_bytes() == saved


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    """Single bytes of a file are changed: it reads as before, or says in one line that it can't."""
    path = tmp_path / "file.npz"
    checkpoint.write_arrays(path, "network", {}, {"a": np.arange(3.0)})
    raw, refused = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    for _ in range(1500):
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            checkpoint.read_arrays(path, "network")
        except ValueError as error:
            refused += "file.npz" in str(error)
    assert refused > 700


def test_executed_macs_have_the_choice_of_the_final_mask_in_them():
    settings = settings_of(fine_tune=0.5, final_mask="best-of-10")
    job, steps = prepare(settings), []

    class Watch(Silent):
        def stepped(self, job, trace):
            steps.append(trace.executed_macs)

    network, summary = train(job, watcher=Watch())
    images, shape = 2 * 256, (8, 8, 1)
    final = job.method.final_masks()  # keep_prob rests in fine-tuning: the same masks again
    samples = [count_macs(job.full_network, shape, mask).macs for mask in final["samples"]]
    top_k = count_macs(job.full_network, shape, final["top_k"][0]).macs
    scored = images * (sum(samples) + top_k)  # recalibrated, then scored on test images
    chosen = 2 * images * sum(samples)  # recalibrated and evaluated on training images
    end = images * count_macs(network, shape).macs
    assert summary["executed_macs"] == sum(steps) + scored + chosen + end


def test_controls_can_be_stopped():
    job = prepare(settings_of())
    _, summary = train(job)
    with pytest.raises(Stopped):
        run_controls(job, summary["macs"], Silent(), stop=lambda: True)


@pytest.mark.parametrize("at_step", [2, 5, 8])
def test_interrupted_from_the_keyboard_and_resumed_ends_equal(
    tmp_path, capsys, monkeypatch, at_step
):
    monkeypatch.chdir(tmp_path)
    options = ["train", *SMALL, "--epochs", "2", "--dense-probes", "0", "--fine-tune", ".5"]
    assert main([*options, "--out", "whole"]) == 0
    stepped = LiveDisplay.stepped

    def interrupt(self, job, trace):
        stepped(self, job, trace)
        if trace.step + 1 == at_step:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(LiveDisplay, "stepped", interrupt)
        assert main([*options, "--out", "run"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "--resume run" in capsys.readouterr().out
    assert finished(tmp_path / "run") is None
    header, _ = checkpoint.read_arrays(tmp_path / "run" / "checkpoint.npz", "checkpoint")
    assert header["totals"]["steps"] == at_step
    assert main(["train", "--resume", "run"]) == 0
    summaries = [json.loads((tmp_path / f / "summary.json").read_text()) for f in ("whole", "run")]
    for summary in summaries:
        summary.pop("time_saving")
    assert timeless(summaries[0]) == timeless(summaries[1])
    networks = [dict(np.load(tmp_path / f / "network.npz")) for f in ("whole", "run")]
    for name, array in networks[0].items():
        np.testing.assert_array_equal(networks[1][name], array, name)


@pytest.mark.parametrize("method", ["completely-sparse", "dense"])
def test_live_display_on_a_terminal(method):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, highlight=False)
    job = prepare(settings_of(method=method, epochs=1, dense_probes=1))
    with LiveDisplay(console) as display:
        display._drawn = -1e9  # the first step draws, however young the machine's clock is
        _, summary = train(job, watcher=display)
    shown = stream.getvalue()
    for word in ("epoch 1/1", "batch", "L(m)", "multiply-adds this step", "steps,", "left"):
        assert word in shown
    assert ("live channels" in shown) == (method == "completely-sparse")
    console.print(final_table(summary, {}))
    table = stream.getvalue()[len(shown) :]
    assert ("top-K" in table) == (method == "completely-sparse")
    assert "time a step, dense steps in between" in table


def test_human_numbers():
    assert [human(n) for n in (0, 12, 1234, 5.6e6, 7e9, 8e12)] == [
        *("0", "12", "1.23 k", "5.6 M", "7 G", "8 T"),
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_defaults_and_changes_win(preset):
    plain = TrainSettings.of_preset(preset)
    for key, value in PRESETS[preset].items():
        assert getattr(plain, key) == value
    assert TrainSettings.of_preset(preset, keep_prob_lr=0.5).keep_prob_lr == 0.5
    plain.check()
    with pytest.raises(ValueError, match="unknown preset 'x': choose paper or released-code"):
        TrainSettings.of_preset("x")


def test_settings_survive_json(tmp_path):
    settings = settings_of(out=tmp_path / "run", preset="paper", threads=None)
    assert TrainSettings.from_json(json.loads(json.dumps(settings.as_json()))) == settings


@pytest.mark.parametrize(
    "command",
    [
        *(TrainSettings, StepSettings, MacsSettings, PlantedSettings, BenchSettings, InfoSettings),
        *(GraphSettings, RecipesSettings, VarianceSettings),
    ],
)
def test_every_setting_is_explained(command):
    bodies = []  # its own, and those of the settings that it shares
    for part in filter(dataclasses.is_dataclass, command.__mro__):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        bodies.append(tree.body)
    explained = {
        field.target.id
        for body in bodies
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and len(text.value.value) > 5
    }
    assert explained == {field.name for field in dataclasses.fields(command)}
