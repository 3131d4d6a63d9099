import json

import numpy as np
import pytest

import minicst
from minicst.job import prepare
from minicst.settings import TrainSettings
from minicst.sparse import count_macs
from minicst.training import Stopped, resume, train

TIMES = ("seconds", "time_saving", "memory")


def settings_of(**changes):
    small = {
        "network": "vgg-tiny",
        "data": "digits",
        "width": 0.25,
        "epochs": 4,
        "batch_size": 256,
        "keep_prob_lr": 0.05,
        "dense_probes": 0,
        "recalibration_batches": 2,
        "threads": 1,
    }
    return TrainSettings(**(small | changes))


class Watch:
    """Collects the traces."""

    def __init__(self):
        self.traces = []

    def started(self, job):
        pass

    def stepped(self, job, trace):
        self.traces.append(trace)

    def epoch_ended(self, job, row):
        pass

    def says(self, text):
        pass


def run(settings, folder=None, stop_after=None):
    """Train; stop after so many steps, if given, and go on from the checkpoint."""
    job = prepare(settings)
    if stop_after is not None:
        with pytest.raises(Stopped):
            train(job, folder, stop=lambda: job.method.step >= stop_after)
        job = resume(folder)
        assert job.method.step == stop_after
    network, summary = train(job, folder)
    return job, network, summary


def timeless(record):
    return {k: v for k, v in record.items() if not any(word in k for word in TIMES)}


def assert_same_run(one, other):
    """Two runs' methods, final networks, summaries and lines of metrics.jsonl, but for times."""
    (method, network, summary, rows), (same, same_network, same_summary, same_rows) = one, other
    assert method.keys() == same.keys()
    for name in method:
        assert np.array_equal(method[name], same[name]), name
    for name, array in network.items():
        assert np.array_equal(array, same_network[name]), name
    assert summary == same_summary
    assert rows == same_rows


def in_folder(settings, folder, stop_after=None):
    """Train in a folder that isn't there yet; what assert_same_run compares."""
    folder.mkdir()
    job, network, summary = run(settings, folder, stop_after)
    rows = [timeless(json.loads(x)) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == settings.epochs
    return job.method.state(), network.state(), timeless(summary), rows


@pytest.fixture(scope="module")
def uninterrupted(request, tmp_path_factory):
    """The settings and what a run of them gives that never stops, which nobody may change."""
    settings = settings_of(**request.param)
    given = in_folder(settings, tmp_path_factory.mktemp("whole") / "run")
    for arrays in given[:2]:
        for array in arrays.values():
            array.flags.writeable = False
    return settings, given


@pytest.mark.parametrize("stop_after", [3, 5, 13, 17])  # five steps an epoch
@pytest.mark.parametrize(
    "uninterrupted",
    [
        {},
        {"resample_every": 4},
        {"fine_tune": 0.5},
        {"resample_every": 3, "fine_tune": 0.25, "final_mask": "top-k"},
        {"backward_masks": 2, "estimator": "vr-pge-symmetric", "clip_norm": 3.0},
        {"keep_prob_optimizer": "sgd", "optimizer": "adam", "lr": 0.01},
        {"estimator": "pge-moving-average"},
        {"estimator": "vr-pge-multi", "n_masks": 3, "backward_masks": 2},
        {"estimator": "arm", "resample_every": 3},
        {"method": "dense"},
        {"linear_masks": "weights"},
        {"network": "mlp", "linear_masks": "weights", "resample_every": 3, "fine_tune": 0.25},
    ],
    ids=str,
    indirect=True,
)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, uninterrupted, stop_after):
    settings, whole = uninterrupted
    assert_same_run(whole, in_folder(settings, tmp_path / "resumed", stop_after))


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr("minicst.backend.pool.INLINE_BYTES", 0)
    states = [run(settings_of(width=0.5, epochs=2, threads=n))[0].method.state() for n in (1, 2, 3)]
    for state in states[1:]:
        for name, array in states[0].items():
            assert np.array_equal(array, state[name]), name


def test_dense_probes_change_no_bit():
    plain, probed = (run(settings_of(epochs=2, dense_probes=n))[0] for n in (0, 4))
    assert len(probed.totals.dense_seconds) >= 4
    for name, array in plain.method.state().items():
        assert np.array_equal(array, probed.method.state()[name]), name


@pytest.mark.parametrize("fine_tune", [0.0, 0.5])
def test_costs_add_up(fine_tune):
    job, watch = prepare(settings_of(fine_tune=fine_tune)), Watch()
    network, summary = train(job, watcher=watch)
    steps = sum(trace.executed_macs for trace in watch.traces)
    per_image = 2 * 256  # recalibration: two batches
    final = count_macs(network, (8, 8, 1)).macs * per_image
    assert summary["executed_macs"] > steps + final
    assert (summary["executed_macs"] - steps) % per_image == 0
    assert summary["executed_macs_dense"] == sum(trace.dense_macs for trace in watch.traces)
    cost = sum((t.passes[0] + 2 * t.passes[1]) * t.cost_ratio for t in watch.traces)
    saving = 3 * len(watch.traces) / cost
    assert summary["train_cost_saving_paper"] == pytest.approx(saving, rel=1e-12)
    if not fine_tune:
        mean_ratio = np.mean([trace.cost_ratio for trace in watch.traces])
        assert saving == pytest.approx(3 / (4 * mean_ratio))
    assert summary["macs"] == count_macs(network, (8, 8, 1)).macs
    assert summary["params"] == network.n_parameters()


@pytest.mark.parametrize("changes", [{}, {"network": "mlp", "linear_masks": "weights"}], ids=str)
def test_executed_macs_are_the_closed_form_of_the_used_masks(changes):
    job, watch = prepare(settings_of(epochs=1, **changes)), Watch()
    train(job, watcher=watch)
    for trace in watch.traces:
        a, b = (
            count_macs(job.full_network, (8, 8, 1), mask)
            for mask in (trace.mask_used_a, trace.mask_used_b)
        )
        expected = sum(
            sum(passes.values())
            for count, backward in ((a, True), (b, False))
            for passes in count.executed(256, backward).values()
        )
        assert trace.executed_macs == expected


def test_keep_rate_one_is_dense_training():
    sparse, dense = Watch(), Watch()
    train(prepare(settings_of(keep_rate=1.0, epochs=2)), watcher=sparse)
    train(prepare(settings_of(method="dense", epochs=2)), watcher=dense)
    losses = [[trace.loss_a for trace in watch.traces] for watch in (sparse, dense)]
    assert losses[0] == losses[1]


def test_nothing_becomes_float64_but_keep_prob():
    job, network, _ = run(settings_of(epochs=1))
    state = job.method.state()
    assert state["keep_prob"].dtype == np.float64
    for name, array in state.items():
        if name.startswith(("network/", "optimizer/")):
            assert array.dtype == np.float32, name
    assert all(array.dtype == np.float32 for array in network.state().values())


def test_fine_tuning_leaves_absent_entries_alone():
    job = prepare(settings_of(fine_tune=0.5))
    kept = {}

    class Keep(Watch):
        def stepped(self, _, trace):
            if trace.step + 1 == job.plan.search_steps:
                kept.update({k: v.copy() for k, v in job.method.state().items()})

    network, _ = train(job, watcher=Keep())
    moved = 0
    live = {unit: node.transform.weight.size for unit, node in network.units().items()}
    for name, array in job.method.state().items():
        if name.startswith("network/") and name.endswith("transform.weight"):
            changed = int((array != kept[name]).sum())
            assert changed <= live[name.split("/")[1].split(".transform")[0]]
            moved += changed
    assert moved > 0


def test_summary_has_what_users_read():
    _, _, summary = run(settings_of(epochs=1, dense_probes=1))
    keys = """method network data seed device epochs keep_rate estimator test_accuracy
        test_accuracy_samples test_accuracy_top_k params params_dense macs macs_dense executed_macs
        executed_macs_dense train_cost_saving_paper train_cost_saving_executed step_seconds
        dense_step_seconds time_saving peak_memory_bytes"""
    assert set(keys.split()) <= set(summary)
    assert set(summary["test_accuracy_samples"]) == {"mean", "sd", "n"}
    assert summary["keep_prob_sum"] <= summary["budget"] * (1 + 1e-12)
    json.dumps(summary, allow_nan=False)


def test_final_network_is_loadable_without_knowing_it(tmp_path):
    job, network, _ = run(settings_of(epochs=1), tmp_path)
    loaded = minicst.load(tmp_path / "network.npz")
    batch = next(iter(job.test_batches()))
    assert np.array_equal(loaded(batch.images).data, network(batch.images).data)


def test_a_loss_that_is_not_finite_is_one_line_and_keeps_the_checkpoint(tmp_path):
    settings = settings_of(epochs=2)
    job = prepare(settings)
    with pytest.raises(Stopped):
        train(job, tmp_path, stop=lambda: job.method.step >= 5)
    job = resume(tmp_path)
    saved = (tmp_path / "checkpoint.npz").read_bytes()
    for parameter in job.full_network.parameters():
        parameter.data[...] = np.nan
    with pytest.raises(ValueError, match=r"L\(m\) is nan at step 5.*--lr"):
        train(job, tmp_path)
    assert (tmp_path / "checkpoint.npz").read_bytes() == saved
    resume(tmp_path)


def test_controls_have_the_macs_of_the_final_network():
    from minicst.training import Silent, run_controls

    job, _, summary = run(settings_of(epochs=1, width=1.0))
    for control in run_controls(job, summary["macs"], Silent()).values():
        assert control["macs"] == pytest.approx(summary["macs"], rel=0.1)
