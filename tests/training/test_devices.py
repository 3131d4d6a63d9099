"""Whole runs with --device cuda, on the stand-in: what crosses, and the numbers of the CPU."""

import json

import numpy as np
import pytest
import strict_cupy

from minicst.backend import cpu_backend, get_backend
from minicst.cli import main
from minicst.job import prepare
from minicst.settings import TrainSettings
from minicst.training import load_job, train

OPTIONS = [
    *("--network", "vgg-tiny", "--data", "digits", "--epochs", "2", "--limit", "96"),
    *("--batch-size", "16", "--test-limit", "40", "--dense-probes", "0"),
]
SETTINGS = {
    "network": "vgg-small",
    "data": "shapes32",
    "width": 0.25,
    "limit": 64,
    "test_limit": 16,
    "batch_size": 16,
    "epochs": 2,
    "dense_probes": 0,
    "recalibration_batches": 1,
}


def run(out, *more):
    assert main(["train", *OPTIONS, "--out", str(out), *more]) == 0
    return json.loads((out / "summary.json").read_text())


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_on_the_device_follows_that_on_the_cpu(tmp_path, gpu):
    cpu = run(tmp_path / "cpu")
    cuda = run(tmp_path / "cuda", "--device", "cuda")
    assert cuda["device"] == "cuda"
    for here, there in zip(rows(tmp_path / "cpu"), rows(tmp_path / "cuda"), strict=True):
        # The same masks: what ran is the same to the MAC. Losses differ as sums are ordered.
        assert here["executed_macs"] == there["executed_macs"]
        assert here["loss_a"] == pytest.approx(there["loss_a"], rel=1e-4)
        assert here["keep_prob_sum"] == pytest.approx(there["keep_prob_sum"], rel=1e-4)
    for key in ("executed_macs", "executed_macs_dense", "macs", "params", "steps", "budget"):
        assert cpu[key] == cuda[key]
    here, there = (np.load(tmp_path / which / "network.npz") for which in ("cpu", "cuda"))
    assert here.files == there.files
    assert all(here[name].shape == there[name].shape for name in here.files)


@pytest.mark.parametrize("every", ["1", "3"])
def test_a_full_model_elsewhere_gives_the_same_bits(tmp_path, gpu, every):
    options = ("--device", "cuda", "--resample-every", every)
    run(tmp_path / "ordinary", *options)
    for where in ("host", "disk"):
        summary = run(tmp_path / where, *options, "--full-model", where)
        assert summary["full_model"]["bytes_in"] > summary["full_model"]["bytes_out"] > 0
        one, other = (np.load(tmp_path / which / "network.npz") for which in ("ordinary", where))
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{where}: {name}")


def test_a_run_resumes_on_another_device(tmp_path, gpu):
    """The checkpoint is on the host; --device belongs to the run and is kept."""
    run(tmp_path / "cuda", "--device", "cuda")
    job = load_job(tmp_path / "cuda")
    assert job.method.backend is gpu
    assert job.full_network.backend is gpu
    assert isinstance(job.method.keep_prob, np.ndarray)


@pytest.mark.parametrize("method", ["dense", "ste", "gumbel", "fixed-mask", "narrow"])
def test_every_method_trains_on_the_device(gpu, method):
    job = prepare(TrainSettings(**SETTINGS | {"method": method, "epochs": 1}, device="cuda"))
    network, summary = train(job)
    assert network.backend is gpu
    assert np.isfinite(summary["test_loss"])


@pytest.mark.parametrize(
    "more",
    [
        {"backward_masks": 2, "final_mask": "best-of-10", "fine_tune": 0.5, "clip_norm": 3.0},
        {"mask_position": "filter"},
        {"planted": True},
        {"resample_every": 3, "optimizer": "adam", "lr": 1e-3},
        {"dense_probes": 2, "estimator": "vr-pge-multi"},
        {"network": "mlp", "linear_masks": "weights", "keep_rate": 0.3},
        {"network": "resnet20", "shortcut": "A", "residual": "independent", "limit": 16},
    ],
    ids=lambda more: "-".join(more),
)
def test_every_option_runs_on_the_device(gpu, more):
    job = prepare(TrainSettings(**SETTINGS | {"epochs": 2} | more, device="cuda"))
    _, summary = train(job)
    assert np.isfinite(summary["test_loss"])


def crossing(job, steps):
    batches = job.loader.epoch(0)
    job.method.train_step(next(batches))  # compiles, and makes what is kept
    synchronisations = strict_cupy.counts.synchronisations
    with strict_cupy.recording() as log:
        traces = [job.method.train_step(next(batches)) for _ in range(steps)]
    return log, strict_cupy.counts.synchronisations - synchronisations, traces


@pytest.mark.parametrize("network", ["vgg-small", "resnet20", "mobilenetv1"])
def test_what_crosses_in_a_step_of_algorithm_1(gpu, network):
    """To the host two losses; to the device the batch and channel numbers. Nothing else."""
    options = {"network": network, "data": "shapes32", "width": 0.25, "residual": "independent"}
    job = prepare(TrainSettings(**SETTINGS | options, device="cuda"))
    log, synchronisations, traces = crossing(job, 2)
    losses = [loss for trace in traces for loss in trace.losses]
    assert [entry.shape for entry in log.d2h] == [()] * 4
    assert all(entry.dtype == np.float64 for entry in log.d2h)
    assert len(losses) == 4
    assert synchronisations == 4  # the reads themselves
    images = [entry for entry in log.h2d if entry.dtype == np.float32]
    numbers = [entry for entry in log.h2d if entry.dtype != np.float32]
    assert [entry.shape for entry in images] == [(16, 32, 32, 3)] * 2
    assert all(entry.dtype == np.int64 and len(entry.shape) == 1 for entry in numbers)
    channels = sum(job.full_network.channels(name) for name in job.full_network.nodes)
    assert max(entry.shape[0] for entry in numbers) <= channels
    # The labels and the numbers of two cuts; a sum of streams places each by numbers of its own.
    adds = sum(node.kind == "add" for node in job.full_network.nodes.values())
    assert len(numbers) <= 2 * (1 + 2 + 2 * 2 * adds)


def test_what_crosses_in_later_steps_and_in_dense_training(gpu):
    """One loss a step; no channel numbers at all."""
    for more in ({"method": "dense"}, {"resample_every": 50}):
        job = prepare(TrainSettings(**SETTINGS | more, device="cuda"))
        log, synchronisations, _ = crossing(job, 2)
        assert [entry.shape for entry in log.d2h] == [(), ()]
        assert synchronisations == 2
        assert [entry.shape for entry in log.h2d] == [(16, 32, 32, 3), (16,)] * 2


def test_everything_on_the_device_is_of_the_networks_dtype(gpu):
    job = prepare(TrainSettings(**SETTINGS, device="cuda"))
    job.method.train_step(next(job.loader.epoch(0)))
    arrays = [*job.full_network.state().values()]
    arrays += [a for state in job.method.optimizer.state.values() for a in state.values()]
    assert {array.dtype.name for array in arrays} == {"float32"}
    assert all(isinstance(array, strict_cupy.ndarray) for array in arrays)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--precision", "tf32"], "--precision tf32 is of --device cuda"),
        (["--workspace-mb", "0"], "--workspace-mb 0: it must be at least 1"),
    ],
)
def test_options_of_a_gpu_are_checked(tmp_path, capsys, more, words):
    assert main(["train", *OPTIONS, "--out", str(tmp_path / "run"), *more]) == 2
    assert words in capsys.readouterr().err


def test_tf32_is_asked_of_cupy_and_taken_back(gpu):
    prepare(TrainSettings(**SETTINGS, device="cuda", precision="tf32"))
    core = strict_cupy._core
    kinds = core._routines_linalg
    assert gpu.precision == "tf32"
    assert core.get_compute_type(strict_cupy.float32) == kinds.COMPUTE_TYPE_TF32
    prepare(TrainSettings(**SETTINGS, device="cuda"))
    assert core.get_compute_type(strict_cupy.float32) == kinds.COMPUTE_TYPE_DEFAULT


def test_a_small_workspace_gives_the_same_forward_pass(gpu, rng):
    x, w = rng.normal(size=(6, 9, 9, 5)), rng.normal(size=(7, 3, 3, 5))
    outs = []
    for limit in (1 << 28, 1):
        gpu.workspace_bytes = limit
        outs.append(gpu.to_numpy(gpu.conv2d(gpu.asarray(x), gpu.asarray(w), None, 1, 1)))
    gpu.configure()
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-13, atol=1e-13)
    want = cpu_backend().conv2d(x, w, None, 1, 1)
    np.testing.assert_allclose(outs[0], want, rtol=1e-12, atol=1e-12)


def test_out_of_memory_is_one_line(tmp_path, gpu, capsys):
    strict_cupy.rules.memory_limit = 1000
    try:
        code = main(["train", *OPTIONS, "--out", str(tmp_path / "run"), "--device", "cuda"])
    finally:
        strict_cupy.rules.memory_limit = None
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: out of memory")
    assert "--batch-size, --width or, on a GPU, --workspace-mb" in error
    assert error.count("\n") == 1


def test_auto_takes_the_gpu_where_there_is_one(gpu):
    assert get_backend("auto") is gpu
