import numpy as np
import pytest

from minicst.bench import BenchSettings, workloads
from minicst.bench.memory import memory_rows, step_peak
from minicst.methods.base import Hyper, Plan
from minicst.methods.dense import Dense


def bench(**options):
    settings = BenchSettings(("vgg-small",), batch_size=16, peers=(), threads=1, **options)
    return settings, workloads(settings)[0]


def test_peak_of_known_allocations():
    """A step that holds 3 MB, then 5 MB more, then lets go: 8 MB above what was there before."""
    _, workload = bench()
    before = np.ones(1 << 20)  # 8 MB, not the step's

    class Known(Dense):
        def train_step(self, batch):
            trace = super().train_step(batch)
            held = np.empty(300 << 20, np.uint8)
            more = np.empty(500 << 20, np.uint8)
            del held, more
            return trace

    method = Known(workload.build(), Hyper(), Plan(1, 1, 16, (32, 32, 3)))
    peak = step_peak(method, workload, 1)["peak"]
    # The step itself leaves gradients, momenta and workspaces: some MB.
    assert (800 << 20) < peak < (830 << 20)
    assert before.nbytes == 8 << 20


def test_memory_falls_with_the_share():
    settings, workload = bench(shares=(50.0, 5.0))
    dense, half, little = memory_rows(settings, workload, lambda text: None)
    assert [row["share"] for row in (dense, half, little)] == [None, 50.0, 5.0]
    assert dense["executed_share"] == 1.0
    assert dense["peak"] > half["peak"] > little["peak"] > 0
    assert dense["closed_form"] > half["closed_form"] > little["closed_form"] > 0
    for row in (dense, half, little):
        assert row["closed_form"] == sum(row["parts"].values())
        assert not {"resident", "images"} & set(row["parts"])


def test_a_measuring_process_that_fails_is_one_line(monkeypatch):
    settings, workload = bench(shares=())
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(ValueError, match="measuring the memory of vgg-small failed") as error:
        memory_rows(settings, workload, lambda text: None)
    assert "\n" not in str(error.value)
