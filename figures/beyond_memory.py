"""A network whose weights and momentum don't fit in memory, trained where they are: on disk.

Paper, Appendix D: only the current sub-network has to be on the device. Here the device is a CPU
whose process may hold 1 GiB (a resource limit that the script sets), and the full model is larger
than 4 GiB, in files. A new sub-network comes every T steps. Beside it: the same steps of the same
sub-network as an ordinary network in memory, the full model in memory under the same limit, and a
process that is killed in the middle of a write.

python figures/beyond_memory.py [--out FOLDER] [--folder WHERE_THE_FILES_GO]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from minicst.backend.disk_backend import DiskBackend
from minicst.checkpoint import write_text
from minicst.cli import main as minicst
from minicst.cli import one_line
from minicst.job import Job, prepare
from minicst.methods.base import build_optimizer
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.trace import StepTrace
from minicst.settings import TrainSettings
from minicst.sparse.subnetwork import cut
from minicst.training import Silent, peak_memory_bytes, train

HERE = Path(__file__).parent
LIMIT = 1 << 30  # bytes of memory that a process may have
LARGER = 4 << 30  # than so many bytes the full model must be
EVERY, BLOCKS, BATCH = 10, 4, 32  # steps of a block, blocks, images a step
SETTINGS = TrainSettings(
    network="vgg19",
    data="fashion",
    width=5.25,
    keep_rate=0.15,
    batch_size=BATCH,
    limit=BATCH * EVERY * BLOCKS,
    test_limit=64,
    epochs=1,
    lr=0.01,
    resample_every=EVERY,
    recalibration_batches=2,
    full_model="disk",
)
# In files only: what may be held of the heap and of anonymous mappings. What is resident of mapped
# files is looked at too, by the peak of the resident set.
LIMITED = resource.RLIMIT_DATA


class Watch(Silent):
    """Keeps the steps' seconds by phase, and how much is resident in between."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []

    def stepped(self, job: Job, trace: StepTrace) -> None:
        """Note the step."""
        self.steps.append(dict(trace.seconds))
        self.losses.append(trace.loss_a)


def under_the_limit() -> None:
    """Set the limit for this process, for good."""
    resource.setrlimit(LIMITED, (LIMIT, LIMIT))


def evict(store: Any) -> None:
    """Take the full model's files out of the system's cache: the next reads are of the disk."""
    store.backend.flush()
    for file in store.folder.glob("*.npy"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def beyond(folder: Path, cold: bool) -> dict[str, Any]:
    """Train with the full model on disk; return what was measured."""
    start = time.perf_counter()
    job = prepare(SETTINGS, folder=folder)
    built = time.perf_counter() - start
    assert job.store is not None
    assert isinstance(job.method, CompletelySparse)
    after_build = peak_memory_bytes()
    job.store.name(job.full_network, job.method.optimizer)
    watch = Watch()
    if cold:
        exchange = job.method.full.exchange

        def from_the_disk(*arguments: Any) -> Any:
            evict(job.store)
            return exchange(*arguments)

        job.method.full.exchange = from_the_disk  # type: ignore[method-assign]
    start = time.perf_counter()
    _, summary = train(job, folder, watch)
    seconds = time.perf_counter() - start
    full = job.method.full
    size = job.store.backend.n_bytes
    if size <= LARGER:
        raise SystemExit(f"the full model takes {size} bytes: take a larger width")
    return {
        "full_model_bytes": size,
        "params": summary["params_dense"],
        "macs_ratio_mean": summary["macs_ratio_mean"],
        "steps": len(watch.steps),
        "build_seconds": built,
        "train_seconds": seconds,
        "step_seconds": [sum(step.values()) for step in watch.steps],
        "phases": watch.steps,
        "losses": watch.losses,
        "bytes_in": full.bytes_in,
        "bytes_out": full.bytes_out,
        "writes": job.store.writes,
        "write_seconds": job.store.seconds,
        "peak_resident_bytes": peak_memory_bytes(),
        "peak_after_build_bytes": after_build,
        "limit_bytes": LIMIT,
    }


def ordinary(folder: Path) -> dict[str, Any]:
    """Take the same steps with the first block's sub-network as an ordinary network in memory."""
    job = prepare(SETTINGS, folder=folder, fresh=False)
    method = job.method
    assert isinstance(method, CompletelySparse)
    masks = method._draw()[2]
    small = cut(job.full_network, masks[0], None, method.backend).network
    optimizer = build_optimizer("sgd", small, method.hyper)
    seconds = []
    for batch in job.loader.epoch(0):
        trace = method.plain_step(small, optimizer, batch)
        seconds.append(trace.total_seconds)
        if len(seconds) == 2 * EVERY:
            break
    return {
        "step_seconds": seconds,
        "params": small.n_parameters(),
        "peak_resident_bytes": peak_memory_bytes(),
    }


def in_memory() -> dict[str, Any]:
    """Try the same with the full model in memory; return what that ends in."""
    try:
        prepare(replace(SETTINGS, full_model="host"))
    except MemoryError as error:
        return {"ends_in": one_line(error)}
    return {"ends_in": None}


def killed(folder: Path) -> None:
    """Train until the third write has begun to change the files, and die there."""
    scatter, journal = DiskBackend.scatter, folder / "full" / "journal.npz"
    seen: list[float] = []

    def scattered(self: DiskBackend, full: Any, entries: Any, small: Any) -> None:
        if journal.exists() and (not seen or journal.stat().st_mtime != seen[-1]):
            seen.append(journal.stat().st_mtime)
        scatter(self, full, entries, small)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    DiskBackend.scatter = scattered  # type: ignore[method-assign]
    job = prepare(SETTINGS, folder=folder)
    train(job, folder)


def child(task: str, folder: Path) -> None:
    """Do one task under the limit; print JSON."""
    under_the_limit()
    if task == "killed":
        killed(folder)
    if task == "resume":
        sys.exit(minicst(["train", "--resume", str(folder)]))
    tasks = {
        "warm": lambda: beyond(folder, cold=False),
        "cold": lambda: beyond(folder, cold=True),
        "ordinary": lambda: ordinary(folder),
        "memory": in_memory,
    }
    print(json.dumps(tasks[task]()))


def ask(task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a task in a process of its own."""
    print(f"{task} ...", file=sys.stderr)
    command = [sys.executable, __file__, "--child", task, "--folder", str(folder)]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def measured(task: str, folder: Path) -> dict[str, Any]:
    """Run a task; return what it printed.

    Raises:
        SystemExit: if it failed.
    """
    done = ask(task, folder)
    if done.returncode:
        raise SystemExit(f"{task} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def crash(folder: Path) -> dict[str, Any]:
    """Kill a run in the middle of a write, resume it, and say what was found."""
    died = ask("killed", folder)
    if died.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run wasn't killed ({died.returncode}):\n{died.stderr[-2000:]}")
    again = ask("resume", folder)
    said = re.search(r"an interrupted write[^\n]*", again.stdout)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "resumed": again.returncode == 0,
        "said": said.group() if said else None,
        "steps": summary["steps"],
        "test_accuracy": summary["test_accuracy"],
        "peak_resident_bytes": summary["peak_memory_bytes"],
    }


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """What the table says, from what was measured."""
    rows = {}
    plain = statistics.median(found["ordinary"]["step_seconds"][EVERY:])
    for which in ("warm", "cold"):
        run = found[which]
        blocks = [run["step_seconds"][i : i + EVERY] for i in range(0, run["steps"], EVERY)]
        later = [statistics.median(block[1:]) for block in blocks]
        # Blocks have sub-networks of other sizes, so what an exchange costs is seen within each.
        added = [statistics.mean(b) - m for b, m in zip(blocks, later, strict=True)][1:]
        rows[which] = {
            "later_step": later[0],
            "over_ordinary": later[0] / plain,
            "added": statistics.mean(added),
            "added_share": statistics.mean(
                extra / seconds for extra, seconds in zip(added, later[1:], strict=True)
            ),
            "write": run["write_seconds"] / run["writes"],
            "in_a_block": run["bytes_in"] / BLOCKS,
            "out_a_block": run["bytes_out"] / run["writes"],
            "peak": run["peak_resident_bytes"],
        }
    return {"ordinary_step": plain, **rows}


def table(found: dict[str, Any]) -> str:
    """Return the Markdown table."""
    of, gib, mib = numbers(found), 1 << 30, 1 << 20
    size = found["warm"]["full_model_bytes"]
    lines = [
        f"VGG-19 of width {SETTINGS.width}, {found['warm']['params'] / 1e6:.0f} M parameters: "
        f"weights, momentum and statistics are {size / gib:.2f} GiB in files, the limit is "
        f"{LIMIT / gib:.0f} GiB of memory; keep rate {SETTINGS.keep_rate}, a new sub-network every "
        f"{EVERY} steps, batch {BATCH}.",
        "",
        "| | files in the system's cache | files read from the disk |",
        "|---|---|---|",
    ]

    def row(label: str, key: str, unit: float, form: str) -> None:
        cells = (form.format(of[which][key] / unit) for which in ("warm", "cold"))
        lines.append(f"| {label} | {' | '.join(cells)} |")

    row("peak resident memory of the process", "peak", mib, "{:.0f} MiB")
    row("read by a block, both sub-networks", "in_a_block", mib, "{:.0f} MiB")
    row("written back by a block", "out_a_block", mib, "{:.0f} MiB")
    row("seconds of a write: journal, files, flush", "write", 1, "{:.2f}")
    row("seconds of a step within the first block", "later_step", 1, "{:.3f}")
    row(
        "over the same sub-network's step, an ordinary network in memory",
        "over_ordinary",
        1,
        "{:.2f}x",
    )
    row(
        "seconds that an exchange, second pass included, adds to each of its T steps",
        "added",
        1,
        "{:.3f}",
    )
    row("as a share of a step", "added_share", 0.01, "{:.0f} %")
    crashed, memory = found["crash"], found["memory"]
    lines += [
        "",
        f"The first sub-network as an ordinary network in memory: {of['ordinary_step']:.3f} s a "
        f"step. The full model in memory under the same limit ends in: `{memory['ends_in']}`. "
        f'Killed in the middle of the third write, the resumed run says "{crashed["said"]}" and '
        f"ends after all {crashed['steps']} steps.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, write figures/beyond_memory.json, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the JSON file")
    parser.add_argument("--folder", type=Path, help="where the full model's files go (10 GB)")
    parser.add_argument("--table", action="store_true", help="only print the table of the file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.out / "beyond_memory.json"
    if options.child:
        child(options.child, options.folder)
        return
    if not options.table:
        folder = Path(tempfile.mkdtemp(prefix="beyond-memory-", dir=options.folder))
        try:
            found = {"settings": {"cpu_threads": os.cpu_count()}}
            for task in ("warm", "cold", "crash"):
                run = folder / task
                run.mkdir()
                found[task] = crash(run) if task == "crash" else measured(task, run)
                if task == "warm":
                    found["ordinary"] = measured("ordinary", run)
                    found["memory"] = measured("memory", run)
                shutil.rmtree(run)
            write_text(path, json.dumps(found, indent=1) + "\n")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
