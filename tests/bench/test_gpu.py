"""`minicst bench --device cuda` on the strict stand-in: times mean nothing, rows must agree."""

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import strict_cupy
from rich.console import Console

from minicst.autograd import Tensor
from minicst.backend import get_backend, using
from minicst.bench import BenchSettings, launches, layers, print_bench, roofline, run_bench, steps
from minicst.bench import memory as memory_module
from minicst.bench import run as run_module
from minicst.bench.dense import hyper, plan
from minicst.bench.peers import Peers, seconds_of
from minicst.bench.settings import LAUNCH_BATCHES, random_batch, workloads
from minicst.cli import main
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense

EVERYTHING = ("dense", "steps", "cut", "memory", "layers", "launches", "workspace")
QUICK = {
    "networks": ("vgg-tiny",),
    "batch_size": 2,
    "shares": (30.0, 10.0),
    "pairs": 2,
    "repeats": 2,
    "device": "cuda",
    "launch_batches": (2, 3),
    "launch_share": 20.0,
    "peers": (),
}


@pytest.fixture
def small(monkeypatch):
    """Products, copies and workspaces that the CPU does at once."""
    monkeypatch.setattr(roofline, "GPU_SIDE", 64)
    monkeypatch.setattr(roofline, "GPU_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(roofline, "GPU_PRODUCTS", 2)
    monkeypatch.setattr(roofline, "VGG", roofline.VGG[:1])
    monkeypatch.setattr(launches, "WORKSPACES_MB", (1, 2))


def on_gpu(gpu, method=Dense, rate=0.5, batch_size=2):
    settings = BenchSettings(**QUICK | {"batch_size": batch_size})
    with using(gpu):
        workload = workloads(settings)[0].on_gpu(gpu, 2)
        return workload, method(workload.build(), hyper(rate), plan(workload))


class Clock:
    """In place of time: passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.mark.slow
def test_every_section_comes_out_and_fits_together(gpu, small, monkeypatch, capsys):
    said = []
    precisions = ("float32", "tf32")
    settings = BenchSettings(**QUICK | {"only": EVERYTHING, "precision": precisions})
    results = run_bench(settings, said.append)
    assert json.loads(json.dumps(results)) == results
    assert results["device"]["name"] == "NVIDIA H100 (stand-in)"
    assert results["settings"]["sections"] == list(EVERYTHING)
    assert gpu.precision == "float32"  # as it was
    assert [w["precision"] for w in results["workloads"]] == list(precisions)
    for workload in results["workloads"]:
        peak = results["peak"][workload["precision"]]
        assert peak["gmacs"] == max(peak["each_gmacs"])
        assert peak["gmacs"] == max(product["gmacs"] for product in peak["products"])
        for row in workload["dense"]:
            assert row["of_peak"] == pytest.approx(row["gmacs"] / peak["gmacs"])
            assert row["gmacs"] == pytest.approx(row["macs"] / row["seconds"]["minicst"] / 1e9)
        check_steps(workload["steps"])
        check_memory(workload["memory"])
        check_launches(workload["launches"])
        assert [row["workspace_mb"] for row in workload["workspace"]] == [1, 2]
        assert all(row["dense"] > 0 and row["sparse"] > 0 for row in workload["workspace"])
        for entry in workload["layers"]:
            total = sum(cell["seconds"] for cell in entry["cells"])
            assert total == pytest.approx(entry["seconds"])
            assert sum(entry["operations"].values()) == pytest.approx(total)
    labels = ("pytorch-nchw", "pytorch-channels-last")
    first = results["workloads"][0]
    first["memory"][0]["torch"] = dict.fromkeys(labels, 10**9)
    for row in first["steps"]["rows"]:
        row["torch_dense"] = {label: {"seconds": 2.0, "over": 12.34} for label in labels}
    for width in (100, 120):
        print_bench(Console(file=sys.stdout, width=width), results)
        out = capsys.readouterr().out
        assert "…" not in out
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    assert "2000 ms 12.34x" in out
    assert "PyTorch NCHW, dense" in out
    for text in (
        "tf32: launches",
        "of further steps",
        "column workspace",
        "NVIDIA H100",
        "Matrix products",
    ):
        assert text in out


def check_steps(found):
    dense = found["dense"]
    assert {"forward_a", "backward", "update", "rest"} == set(dense["phases"])
    for row in found["rows"]:
        assert row["seconds"] > 0
        assert row["saving_macs"] == pytest.approx(dense["macs"] / row["macs"], rel=0.05)
        assert row["saving_paper_formula"] == pytest.approx(3 / (4 * row["executed_share"]))
        assert {"sample", "cut", "forward_b", "forward_a", "paste"} <= set(row["phases"])
        assert 0 < row["structure_share"] < 1
        assert row["authors"] == row["torch_dense"] == {}


def check_memory(rows):
    assert [row["share"] for row in rows] == [None, 30.0, 10.0]
    assert rows[0]["peak"] > rows[1]["peak"] > rows[2]["peak"] > 0
    assert rows[0]["torch"] == {}
    assert "closed_form" not in rows[0]


def check_launches(rows):
    assert [(r["batch_size"], r["share"]) for r in rows] == [
        (2, None),
        (2, 20.0),
        (3, None),
        (3, 20.0),
    ]
    for row in rows:
        assert row["host"] <= row["seconds"]
        assert row["bound"] == ("launches" if row["host_share"] >= 0.9 else "device")
        assert row["reads"] == (1 if row["share"] is None else 2)
        assert row["launches"] > 20
    # Neither masks nor chunks change with so few images.
    assert rows[0]["launches"] == rows[2]["launches"] < rows[1]["launches"]


def test_launches_are_those_that_the_device_gets(gpu):
    workload, method = on_gpu(gpu)
    with using(gpu), strict_cupy.recording() as log, launches.host_counts(gpu) as counts:
        method.train_step(workload.batch)
    # A chain of convolutions adds nothing by minicst's kernel, but gradients by the array module's.
    own = [name for name in log.launches if name in kernel_names() and name != "add"]
    assert counts.launches == len(own) > 20
    assert counts.reads == len(log.d2h) == 1
    before = counts.launches
    method.train_step(workload.batch)  # afterwards nothing is counted
    assert counts.launches == before
    assert "_launch" not in vars(gpu)
    assert Tensor.item.__name__ == "item"


def kernel_names():
    from minicst.backend.cuda_kernels import kernel_text

    return {line.split("(")[0].split()[-1] for line in kernel_text().splitlines() if "void" in line}


def test_waiting_is_what_passes_in_synchronize(gpu, clock, monkeypatch):
    """Two steps: 3 s to launch each, 5 s of waiting at each loss and once more at the end."""
    workload, method = on_gpu(gpu)
    zero_grad = method.optimizer.zero_grad

    def launching():
        clock.passes(3.0)
        zero_grad()

    monkeypatch.setattr(gpu, "synchronize", lambda: clock.passes(5.0))
    monkeypatch.setattr(method.optimizer, "zero_grad", launching)
    with using(gpu):
        whole, waited = launches._turn(method, workload, 2)
    assert waited == (2 * 5.0 + 5.0) / 2
    assert whole == 3.0 + waited


@pytest.mark.parametrize(("share", "bound"), [(0.89, "device"), (0.9, "launches")])
def test_a_step_is_bound_by_launches_where_the_host_hardly_waits(gpu, share, bound, monkeypatch):
    workload, method = on_gpu(gpu)
    monkeypatch.setattr(launches, "_turn", lambda *_: (2.0, 2.0 * (1 - share)))
    with using(gpu):
        row = launches._launches(method, workload, 3)
    assert row["seconds"] == 2.0
    assert row["waited"] == pytest.approx(2.0 * (1 - share))
    assert row["host"] == pytest.approx(2.0 * share)
    assert row["host_share"] == pytest.approx(share)
    assert row["bound"] == bound


def test_a_batch_that_does_not_fit_is_left_out_with_a_line(gpu, monkeypatch):
    settings = BenchSettings(**QUICK)
    peers = Peers(said := [].append)
    assert callable(said)
    with using(gpu):
        workload = workloads(settings)[0]
        original = launches._launches

        def first_only(method, workload, pairs):
            if workload.batch_size == 3:
                raise strict_cupy.cuda.memory.OutOfMemoryError(1 << 40, 5)
            return original(method, workload, pairs)

        monkeypatch.setattr(launches, "_launches", first_only)
        rows = launches.launch_rows(settings, workload, peers, lambda text: None)
    assert {row["batch_size"] for row in rows} == {2}
    (line,) = peers.left_out
    assert "vgg-tiny: launches at batch 3 are left out (Out of memory" in line
    assert "\n" not in line


def test_the_workspace_is_of_its_old_size_afterwards(gpu, small):
    settings = BenchSettings(**QUICK | {"workspace_mb": 7})
    gpu.configure("float32", 7)
    seen = set()
    with using(gpu):
        workload = workloads(settings)[0].on_gpu(gpu, 1)
        step = Dense.train_step

        def watched(self, batch):
            seen.add(self.backend.workspace_bytes >> 20)
            return step(self, batch)

        Dense.train_step, before = watched, Dense.train_step
        try:
            launches.workspace_rows(settings, workload, "float32", Peers(print), lambda text: None)
        finally:
            Dense.train_step = before
    assert seen == {1, 2}
    assert gpu.workspace_bytes == 7 << 20
    gpu.configure()


def test_peak_of_known_allocations(gpu):
    held = gpu.xp.zeros(1 << 20, np.float32)  # 4 MB, not the step's
    with memory_module.pool_peak(gpu.xp) as found:
        a = gpu.xp.zeros(3 << 18, np.float32)  # 3 MB
        b = gpu.xp.zeros(5 << 18, np.float32)  # 5 MB more
        del a
        c = gpu.xp.zeros(1 << 18, np.float32)
        del b, c
    assert found["peak"] - found["before"] == 8 << 20
    assert found["before"] >= held.nbytes


def test_peak_of_a_step_is_the_pools(gpu):
    """The stand-in's pool counts by itself; the step's own backend starts without workspace."""
    workload, _ = on_gpu(gpu)
    with using(gpu):
        first = memory_module._gpu_peak(workload, None)
        strict_cupy.counts.peak_bytes = 0
        before = gpu.xp.get_default_memory_pool().used_bytes()
        second = memory_module._gpu_peak(workload, None)
    assert first == second
    # Above what was there before the step, so below what was there before the network.
    weights = 4 * sum(p.size for p in workload.build().parameters())
    pool = strict_cupy.counts.peak_bytes - before
    assert pool - 3 * weights - 100_000 < second["peak"] < pool - weights


def test_phases_are_waited_for_apart_from_the_turns(gpu, monkeypatch):
    workload, method = on_gpu(gpu, CompletelySparse)
    exact = []
    original = method.train_step

    def watched(batch):
        exact.append(gpu.exact_times)
        return original(batch)

    monkeypatch.setattr(method, "train_step", watched)
    timed = steps.Timed(method, workload)
    with using(gpu):
        for _ in range(3):
            timed()
        timed.finish(2)
    assert exact == [False] * 9 + [True] * 2  # three turns of one that isn't timed and two that are
    assert not gpu.exact_times
    assert len(timed.seconds) == len(timed.turns) == len(timed.apart) == 2
    assert [len(traces) for traces in timed.turns] == [2, 2]
    assert timed.turns[-1][-1].step == 8
    assert [trace.step for _, trace in timed.apart] == [9, 10]


def test_seconds_are_the_mean_after_the_device_has_been_waited_for(gpu, clock, monkeypatch):
    order = []

    def wait():
        clock.passes(3.0)
        order.append("wait")

    def run():
        clock.passes(2.0)
        order.append("run")

    monkeypatch.setattr(gpu, "synchronize", wait)
    assert seconds_of(run, gpu, 3) == (3 * 2.0 + 3.0) / 3
    assert order == ["run", "wait", "run", "run", "run", "wait"]
    order.clear()
    assert seconds_of(run, gpu) == 5.0
    assert order == ["wait", "run", "wait"]


def test_operations_wait_before_and_after(gpu, clock, monkeypatch):
    """An operation that only the device spends time on is booked, not whoever waits later."""
    late = []

    def synchronize():
        clock.passes(sum(late))
        late.clear()

    monkeypatch.setattr(gpu, "synchronize", synchronize)
    monkeypatch.setattr(gpu, "relu", lambda x: late.append(2.0))
    with layers.operation_times(gpu) as times:
        late.append(3.0)  # of something before it
        gpu.relu(1)
        times.meter.layer = "next"
        late.append(5.0)
    assert dict(times.seconds) == {("", "", "relu"): 2.0}
    assert dict(times.meter.seconds) == {("", ""): 5.0, ("", "next"): 5.0}


def test_roofline_counts_products_and_bytes(gpu, small, monkeypatch):
    monkeypatch.setattr(roofline, "seconds_of", lambda task, backend, repeats: 0.5)
    gpu.configure("float32", 1)
    found = roofline.GpuRoofline(gpu, 2)
    gpu.configure()
    found.measure()
    # 1 MB holds the columns of 9 images of 32x32 pixels with 27 numbers, and 2 are asked for.
    assert found.products == {
        (64, 64, 64): pytest.approx(2 * 64**3 / 1e9),
        (2048, 27, 64): pytest.approx(2 * 2048 * 27 * 64 / 1e9),
    }
    assert found.gmacs == found.each[0] == pytest.approx(2 * 2048 * 27 * 64 / 1e9)
    assert found.copied == pytest.approx(2 * 2 * (1 << 16) / 1e9)
    assert found.floor(found.gmacs * 1e9) == pytest.approx(1.0)


def test_rows_of_a_product_are_limited_by_the_workspace(gpu):
    gpu.configure("float32", 1)
    found = roofline.GpuRoofline(gpu, 256)
    gpu.configure()
    # 3x3 convolutions of 64 channels: 2304 bytes a pixel, so 1 MB holds no image of 32x32.
    assert (1024, 576, 64) in found.shapes
    assert (9 * 1024, 27, 64) in found.shapes  # 9 images of 3 channels: 110592 bytes each
    assert all(
        4 * rows * inner <= max(1 << 20, 4 * 1024 * inner) for rows, inner, _ in found.shapes[1:]
    )


def test_jax_is_left_out_and_a_pytorch_without_a_gpu_too(gpu, small, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'PyTorch 9.9 sees no GPU' >&2\nexit 1\n")
    python.chmod(0o755)
    said = []
    settings = BenchSettings(
        **QUICK
        | {
            "only": ("memory",),
            "peers": ("pytorch-nchw", "jax"),
            "torch_python": str(python),
            "precision": ("float32", "tf32"),
            "shares": (),
        }
    )
    results = run_bench(settings, said.append)
    assert results["peers"] == {"PyTorch": None, "JAX": None}
    jax, torch = results["left_out"]  # once, though there are two precisions
    assert jax == "JAX's peer runs on the CPU only: its rows are left out"
    assert "PyTorch 9.9 sees no GPU" in torch
    assert "--torch-python" in torch


@pytest.mark.slow
def test_beside_pytorch(gpu, small, torch_python, monkeypatch):
    """PyTorch's process runs what it runs on a GPU, but on the CPU."""
    monkeypatch.setattr(run_module, "PEER_DEVICE", "cpu")
    settings = BenchSettings(
        **QUICK
        | {
            "only": ("dense", "steps", "authors", "cut", "memory"),
            "peers": ("pytorch-nchw", "pytorch-channels-last", "jax"),
            "torch_python": torch_python,
            "shares": (20.0,),
            "precision": ("tf32",),
            "pairs": 1,
        }
    )
    results = run_bench(settings, lambda text: None)
    labels = {"pytorch-nchw", "pytorch-channels-last"}
    assert results["peers"]["PyTorch"].startswith("PyTorch ")
    assert len(results["left_out"]) == 1  # JAX
    (workload,) = results["workloads"]
    for row in workload["dense"]:
        assert set(row["over"]) == labels
        (own,) = row["turns"]["minicst"]
        assert row["over"]["pytorch-nchw"] == own / row["seconds"]["pytorch-nchw"]
    (row,) = workload["steps"]["rows"]
    for beside in (row["authors"], row["torch_dense"]):
        assert set(beside) == labels
        for found in beside.values():
            assert found["over"] == pytest.approx(found["seconds"] / row["seconds"])
    (cut,) = workload["cut"]
    assert all(set(r["over"]) == labels for kind in ("static", "changing") for r in cut[kind])
    assert workload["memory"][0]["torch"] == {}  # of the CPU PyTorch says none


def test_what_a_gpu_has_is_not_asked_of_a_cpu():
    settings = BenchSettings(only=("dense", "launches", "workspace"))
    assert settings.sections == ("dense",)
    assert replace(settings, device="cuda").sections == ("dense", "launches", "workspace")
    assert BenchSettings().sections == ("dense", "steps", "authors", "cut", "memory")
    with pytest.raises(ValueError, match="--only launches: nothing of it is of the CPU"):
        workloads(BenchSettings(only=("launches",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ()}, "--precision names none"),
        ({"repeats": 0}, "--repeats 0"),
        ({"launch_batches": ()}, "--launch-batches"),
        ({"launch_batches": (1, 8)}, "--launch-batches 1 8"),
        ({"launch_share": 0.0}, "--launch-share 0"),
        ({"launch_share": 0.01}, "the keep rate must be at least"),
    ],
)
def test_impossible_settings_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        workloads(BenchSettings(**QUICK | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "float32", "tf32"], "--precision tf32 is of --device cuda"),
        (["--workspace-mb", "0"], "--workspace-mb 0"),
        (["--only", "workspace"], "--only workspace: nothing of it is of the CPU"),
    ],
)
def test_what_a_cpu_refuses(arguments, message, capsys):
    assert main(["bench", "--networks", "vgg-tiny", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("minicst.backend._cuda_backend", no_gpu)
    assert main(["bench", "--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "device 'cuda' can't be used: no driver" in line


def no_gpu():
    from minicst.backend.probe import Unusable

    raise Unusable("no driver")


def test_images_lie_on_the_device(gpu):
    workload, method = on_gpu(gpu)
    assert workload.batch_size == 2
    assert workload.repeats == 2
    with using(gpu):
        method.train_step(workload.batch)
        with strict_cupy.recording() as log:
            method.train_step(workload.batch)
    assert log.h2d == []
    assert random_batch(2, 0).images.shape == workload.batch.images.shape
    assert min(LAUNCH_BATCHES) == 2
    assert get_backend("cuda") is gpu
