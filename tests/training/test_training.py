"""What test_resume.py and test_run_end.py leave open: totals, losses, closed forms, divergence."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import minicst
from minicst.job import plant, prepare
from minicst.models import build
from minicst.planted import PlantedSettings, run_planted
from minicst.settings import TrainSettings
from minicst.sparse import count_macs
from minicst.training import Silent, Stopped, history, resume, train

SHAPE, BATCH = (8, 8, 1), 128
TIMES = ("second", "time_saving", "memory")


def settings_of(**changes):
    small = {
        "network": "vgg-tiny",
        "data": "digits",
        "width": 0.25,
        "epochs": 2,
        "batch_size": BATCH,
        "keep_prob_lr": 0.05,
        "dense_probes": 0,
        "recalibration_batches": 2,
        "threads": 1,
    }
    return TrainSettings(**(small | changes))


class Watcher(Silent):
    def __init__(self):
        self.traces = []

    def stepped(self, job, trace):
        self.traces.append(trace)


def timeless(record):
    return {k: v for k, v in record.items() if not any(word in k for word in TIMES)}


def same_arrays(one, two):
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == two[name].dtype, name
        assert np.array_equal(array, two[name]), name


def steps_of(settings):
    return prepare(settings).steps_per_epoch


@pytest.mark.parametrize("where", ["mid-epoch", "epoch's end", "second epoch"])
@pytest.mark.parametrize(
    "changes",
    [
        {"resample_every": 4, "fine_tune": 0.5},
        {"backward_masks": 2, "fine_tune": 0.5, "final_mask": "best-of-10"},
        {"method": "fixed-mask"},
        {"method": "narrow"},
        {"planted": True},
        {"mask_position": "filter"},
    ],
    ids=str,
)
def test_totals_go_on_where_they_stood(tmp_path, changes, where):
    settings = settings_of(**changes)
    n = steps_of(settings)
    stop_after = {"mid-epoch": n - 2, "epoch's end": n, "second epoch": n + 3}[where]
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole = prepare(settings)
    network, summary = train(whole, tmp_path / "whole")
    job = prepare(settings)
    folder = tmp_path / "resumed"
    with pytest.raises(Stopped):
        train(job, folder, stop=lambda: job.method.step == stop_after)
    other = resume(folder)
    assert asdict(other.totals) == asdict(job.totals)
    same_arrays(other.method.state(), job.method.state())
    same_network, same_summary = train(other, folder)
    assert timeless(asdict(other.totals)) == timeless(asdict(whole.totals))
    assert other.totals.epoch_sums == {}
    same_arrays(whole.method.state(), other.method.state())
    same_arrays(network.state(), same_network.state())
    assert timeless(summary) == timeless(same_summary)
    rows, same_rows = (
        [timeless(row) for row in history(tmp_path / f)] for f in ("whole", "resumed")
    )
    assert rows == same_rows


def test_stopped_twice_is_the_same_as_never(tmp_path):
    settings = settings_of(resample_every=4, fine_tune=0.5)
    whole = prepare(settings)
    network, _ = train(whole)
    job = prepare(settings)
    for at in (3, 18, 19):
        with pytest.raises(Stopped):
            train(job, tmp_path, stop=lambda job=job, at=at: job.method.step == at)
        job = resume(tmp_path, threads=2)
    same, _ = train(job, tmp_path)
    same_arrays(network.state(), same.state())
    assert timeless(asdict(job.totals)) == timeless(asdict(whole.totals))


@pytest.mark.parametrize("method", ["completely-sparse", "dense", "fixed-mask", "narrow"])
def test_losses_depend_on_the_seed_and_not_on_threads(method, monkeypatch):
    monkeypatch.setattr("minicst.backend.pool.INLINE_BYTES", 0)
    losses, states = [], []
    for seed, threads in ((0, 1), (0, 2), (1, 1)):
        watcher = Watcher()
        job = prepare(settings_of(method=method, seed=seed, threads=threads, epochs=1))
        train(job, watcher=watcher)
        losses.append([(trace.loss_a, trace.loss_b) for trace in watcher.traces])
        states.append(job.method.state())
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    same_arrays(states[0], states[1])


@pytest.mark.parametrize("fine_tune", [0.0, 0.5])
def test_executed_macs_are_those_of_the_steps_and_of_recalibration(fine_tune):
    job, watcher = prepare(settings_of(fine_tune=fine_tune)), Watcher()
    network, summary = train(job, watcher=watcher)
    masks = job.method.final_masks()  # keep_prob rests since: the same masks again
    small = [count_macs(job.full_network, SHAPE, m).macs for kind in masks.values() for m in kind]
    assert len(small) == 11
    passes = sum(small) + count_macs(network, SHAPE).macs
    steps = sum(trace.executed_macs for trace in watcher.traces)
    assert summary["executed_macs"] == steps + 2 * BATCH * passes
    if not fine_tune:
        mean_ratio = np.mean([trace.cost_ratio for trace in watcher.traces])
        assert summary["train_cost_saving_paper"] == pytest.approx(3 / (4 * mean_ratio))


@pytest.mark.parametrize("method", ["completely-sparse", "dense", "fixed-mask", "narrow"])
def test_the_written_network_has_the_counts_of_the_summary(tmp_path, method):
    network, _ = train(prepare(settings_of(method=method, epochs=1)), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    loaded = minicst.load(tmp_path / "network.npz")
    count = count_macs(loaded, SHAPE)
    assert (summary["params"], summary["macs"]) == (count.params, count.macs)
    assert count.params == loaded.n_parameters()
    x = np.random.default_rng(0).random((5, *SHAPE), np.float32)
    assert np.array_equal(loaded(x).data, network(x).data)
    sparse = method == "completely-sparse"
    assert (summary["test_accuracy_samples"] is not None) == sparse
    assert (summary["test_accuracy_top_k"] is not None) == sparse
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("method", ["completely-sparse", "dense"])
def test_divergence_names_lr_and_the_last_checkpoint_stays(tmp_path, method):
    settings = settings_of(lr=1e9, method=method, schedule="constant", epochs=4)
    job = prepare(settings)
    with pytest.raises(Stopped):
        train(job, tmp_path, stop=lambda: job.method.step == 1)
    saved = (tmp_path / "checkpoint.npz").read_bytes()
    with pytest.raises(ValueError, match=r"diverged; try a smaller --lr \(now 1000000000") as error:
        train(resume(tmp_path), tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "checkpoint.npz").read_bytes() == saved
    assert resume(tmp_path).method.step == 1


def test_metrics_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"can't write .*metrics\.jsonl.*--out") as error:
        train(prepare(settings_of(epochs=1)), tmp_path)
    assert "\n" not in str(error.value)


def test_plant_marks_half_of_every_units_channels():
    network = build("vgg-tiny", in_channels=1, width=0.25)
    plant(network, seed=3)
    units = [unit for unit in network.units().values() if unit.group is not None]
    assert units
    for unit in units:
        assert 2 * unit.noise.bad.sum() == unit.transform.c_out


def test_run_planted_returns_what_it_says():
    settings = PlantedSettings(
        methods=("vr-pge", "fixed-mask"), epochs=1, seeds=1, threads=1, keep_prob_lr=0.05
    )
    result = run_planted(settings)
    assert set(result["methods"]) == {"vr-pge", "fixed-mask"}
    assert result["base_share"] == 0.5
    assert result["seeds"] == [0]
    for method in result["methods"].values():
        assert set(method) == {"good_share", "test_accuracy", "seconds_per_run"}
        for key in ("good_share", "test_accuracy"):
            assert len(method[key]["values"]) == 1
            assert method[key]["sd"] == 0.0
            assert 0.0 < method[key]["mean"] <= 1.0
    json.dumps(result, allow_nan=False)
