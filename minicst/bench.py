"""`minicst bench`: seconds of dense passes, beside PyTorch, and of Algorithm 1's step.

PyTorch runs in a process of its own (its threads and OpenBLAS's disturb each other within one), and
takes turns with minicst; numbers are medians over these pairs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import minicst.functional as F
from minicst.autograd import Tensor, no_grad
from minicst.backend import get_backend
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.models import build
from minicst.models.vgg import VGG_LAYERS
from minicst.sparse.accounting import count_macs
from minicst.tables import table as new_table


@dataclass(frozen=True)
class BenchSettings:
    """Time a VGG's dense passes beside PyTorch, and Algorithm 1's step against the dense step."""

    network: str = "vgg19"
    """One of the VGGs."""
    batch_size: int = 64
    """Images of 32x32x3."""
    keep_rates: tuple[float, ...] = (0.5, 0.22)
    """Keep rates at which Algorithm 1's whole step is timed."""
    pairs: int = 7
    """Repeats, taken in turns; medians are reported."""
    torch_python: str = sys.executable
    """Interpreter that has PyTorch; where it has none, PyTorch's rows are left out."""
    threads: int | None = None
    """CPU threads for both; all cores by default."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


class TorchPeer:
    """A PyTorch process that times its passes when asked."""

    def __init__(self, settings: BenchSettings, threads: int, channels_last: bool) -> None:
        spec = {
            "layers": VGG_LAYERS[settings.network],
            "batch": settings.batch_size,
            "in_channels": 3,
            "size": 32,
            "threads": threads,
            "channels_last": channels_last,
        }
        script = Path(__file__).with_name("bench_peer_torch.py")
        self.process = subprocess.Popen(
            [settings.torch_python, str(script), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.version = self.process.stdout.readline().strip()

    def time(self, what: str) -> float:
        """Seconds of one pass."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=10)  # closes its input, at whose end it stops


def run_bench(settings: BenchSettings, says: Callable[[str], None]) -> dict[str, Any]:
    """Time everything.

    Paper: App. C.2, Table 5: measured time, dense against sparse [time]

    Returns:
        {"rows": [{"what", "seconds", "pytorch_channels_last", ...}], "steps": [...], ...}.

    Raises:
        ValueError: if a setting is impossible.
    """
    if settings.network not in VGG_LAYERS:
        raise ValueError(
            f"unknown network '{settings.network}': bench takes {', '.join(VGG_LAYERS)}"
        )
    if settings.pairs < 1 or settings.batch_size < 2:
        raise ValueError("--pairs must be at least 1 and --batch-size at least 2")
    backend = get_backend("cpu", settings.threads)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((settings.batch_size, 32, 32, 3), np.float32)
    batch = Batch(0, images, rng.integers(0, 10, settings.batch_size))
    rows = _dense_rows(settings, batch, says)
    steps = _step_rows(settings, batch, says)
    return {
        "network": settings.network,
        "batch_size": settings.batch_size,
        "threads": backend.threads,
        "pairs": settings.pairs,
        **rows,
        "steps": steps,
    }


def _dense_rows(
    settings: BenchSettings, batch: Batch, says: Callable[[str], None]
) -> dict[str, Any]:
    network = build(settings.network)
    threads = get_backend().threads
    peers: dict[str, TorchPeer] = {}
    for label, channels_last in (("pytorch_channels_last", True), ("pytorch_nchw", False)):
        peer = TorchPeer(settings, threads, channels_last)
        if peer.version:
            peers[label] = peer
        else:
            peer.close()
    if not peers:
        says(f"{settings.torch_python} has no PyTorch: its rows are left out (--torch-python)")

    def forward() -> None:
        with no_grad():
            network(batch.images, training=True)

    def forward_backward() -> None:
        network.zero_grad()
        F.cross_entropy(network(Tensor(batch.images), training=True), batch.labels).backward()

    macs = count_macs(network, (32, 32, 3)).executed(settings.batch_size, backward=True)
    work = {
        "forward": sum(passes["forward"] for passes in macs.values()),
        "forward_backward": sum(sum(passes.values()) for passes in macs.values()),
    }
    rows = []
    for what, run in (("forward", forward), ("forward_backward", forward_backward)):
        says(f"dense {settings.network}, {what.replace('_', ' + ')}")
        seconds: dict[str, list[float]] = {"minicst": [], **{label: [] for label in peers}}
        for pair in range(-1, settings.pairs):  # the first turn warms up
            took = {"minicst": _seconds(run)}
            took |= {label: peer.time(what) for label, peer in peers.items()}
            if pair >= 0:
                for label, value in took.items():
                    seconds[label].append(value)
        medians = {label: statistics.median(values) for label, values in seconds.items()}
        rows.append({"what": what, "seconds": medians, "macs": work[what]})
    version = next((peer.version for peer in peers.values()), None)
    for peer in peers.values():
        peer.close()
    return {"pytorch": version, "dense": rows}


def _step_rows(
    settings: BenchSettings, batch: Batch, says: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Whole training steps, update included: Algorithm 1's against the dense one's, in turns."""
    plan = Plan(10**6, 10**6, settings.batch_size, (32, 32, 3))
    rows = []
    dense = Dense(build(settings.network), Hyper(), plan)
    for rate in settings.keep_rates:
        says(f"whole step of Algorithm 1 at keep rate {rate:g}, and dense")
        sparse = CompletelySparse(build(settings.network), Hyper(keep_rate=rate), plan)
        took: dict[str, list[float]] = {"dense": [], "sparse": []}
        phases: dict[str, list[float]] = {}
        ratios = []
        for pair in range(-1, settings.pairs):
            dense_seconds = _seconds(lambda: dense.train_step(batch))
            start = time.perf_counter()
            trace = sparse.train_step(batch)
            sparse_seconds = time.perf_counter() - start
            if pair < 0:
                continue
            took["dense"].append(dense_seconds)
            took["sparse"].append(sparse_seconds)
            ratios.append(trace.cost_ratio)
            for phase, seconds in trace.seconds.items():
                phases.setdefault(phase, []).append(seconds)
        ratio = statistics.mean(ratios)
        rows.append(
            {
                "keep_rate": rate,
                "macs_ratio": ratio,
                "saving_paper_formula": 3.0 / (4.0 * ratio),
                "seconds": {key: statistics.median(values) for key, values in took.items()},
                "phases": {key: statistics.median(values) for key, values in phases.items()},
            }
        )
    return rows


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def print_bench(console: Console, results: dict[str, Any]) -> None:
    """Print two tables."""
    labels = list(results["dense"][0]["seconds"])
    table = new_table(
        f"dense {results['network']}, batch {results['batch_size']}, {results['threads']} threads, "
        f"medians of {results['pairs']}",
        *("pass", *(label.replace("_", " ") for label in labels), "GMAC/s"),
    )
    for row in results["dense"]:
        own = row["seconds"]["minicst"]
        cells = [
            f"{seconds * 1e3:.0f} ms" + ("" if label == "minicst" else f" ({own / seconds:.2f}x)")
            for label, seconds in row["seconds"].items()
        ]
        table.add_row(row["what"].replace("_", " + "), *cells, f"{row['macs'] / own / 1e9:.0f}")
    if results["pytorch"]:
        table.caption = f"{results['pytorch']} in its own process; (minicst's time over PyTorch's)"
    console.print(table)
    names = ("keep rate", "forward MACs", "dense", "Algorithm 1", "saving", "paper's formula")
    title = "whole training step, update included: Algorithm 1 against dense"
    steps = new_table(title, *names, left=0)
    for row in results["steps"]:
        dense, sparse = row["seconds"]["dense"], row["seconds"]["sparse"]
        steps.add_row(
            f"{row['keep_rate']:g}",
            f"{row['macs_ratio']:.2%}",
            f"{dense * 1e3:.0f} ms",
            f"{sparse * 1e3:.0f} ms",
            f"{dense / sparse:.2f}x",
            f"{row['saving_paper_formula']:.2f}x",
        )
    console.print(steps)
