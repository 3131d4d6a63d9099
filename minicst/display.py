"""What `minicst train` shows while it runs, and its final table."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from minicst.job import Job
from minicst.methods.trace import StepTrace
from minicst.settings import TrainSettings
from minicst.tables import table as new_table


def human(number: float) -> str:
    """1234567 -> '1.23 M'."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


class LiveDisplay:
    """Progress of a run: on a terminal redrawn in place, elsewhere a line an epoch.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("steps,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._live: Live | None = None
        self._drawn = 0.0
        self._task: Any = None

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def started(self, job: Job) -> None:
        """Show what will be trained."""
        s = job.settings
        n = job.full_network.n_maskable
        dense = job.method.dense_count
        self.console.print(
            f"[bold]{s.method}[/bold]: {s.network} on {s.data} "
            f"({len(job.dataset.train_labels)} training images), {dense.params:,} parameters, "
            f"{n} maskable {job.full_network.maskable}, {human(dense.macs)}MACs an image dense; "
            f"{job.plan.total_steps} steps"
        )
        if (note := recipe_note(s)) is not None:
            self.console.print(note)
        total = job.plan.total_steps
        self._task = self._progress.add_task(s.network, total=total, completed=job.method.step)
        if self.console.is_terminal:
            self._live = Live(
                self._progress, console=self.console, refresh_per_second=5, transient=True
            )
            self._live.start()

    def stepped(self, job: Job, trace: StepTrace) -> None:
        """Redraw, at most five times a second."""
        self._progress.update(self._task, completed=job.method.step)
        now = time.monotonic()
        if self._live is None or now - self._drawn < 0.2:
            return
        self._drawn = now
        self._live.update(Group(self._progress, self._numbers(job, trace)))

    def epoch_ended(self, job: Job, row: dict[str, Any]) -> None:
        """Print a line where nothing is redrawn."""
        if self._live is None:
            parts = [f"epoch {row['epoch']}/{job.settings.epochs}", f"loss {row['loss_a']:.4f}"]
            if "loss_b" in row:
                parts.append(f"L(m') {row['loss_b']:.4f}")
            if "keep_prob_near_0" in row:
                decided = row["keep_prob_near_0"] + row["keep_prob_near_1"]
                parts.append(f"decided {decided:.0%}")
            parts.append(f"forward MACs {row['macs_ratio']:.1%} of dense")
            parts.append(f"{row['step_seconds'] * 1e3:.1f} ms a step")
            self.console.print(", ".join(parts))

    def says(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(text, style="dim"))

    def _numbers(self, job: Job, trace: StepTrace) -> Text:
        at = f"epoch {job.totals.epoch + 1}/{job.settings.epochs}"
        at += f"   batch {job.totals.batch}/{job.steps_per_epoch}"
        if job.plan.search_steps < job.plan.total_steps:
            at += "   search" if job.method.searching else "   fine-tuning the final sub-network"
        losses = f"L(m) {trace.loss_a:.4f}"
        if trace.loss_b is not None:
            losses += f"   L(m') {trace.loss_b:.4f}   difference {trace.loss_a - trace.loss_b:+.4f}"
        lines = [at, losses]
        if "a" in trace.live_channels:
            counts = trace.live_channels["a"]
            shown = " ".join(str(count) for count in counts.values())
            if len(shown) > 40:
                shown = f"in {len(counts)} groups"
            total = job.full_network.n_maskable
            what = job.full_network.maskable
            lines.append(f"live {what} {sum(counts.values())} of {total} ({shown})")
        executed, dense = trace.executed_macs, trace.dense_macs
        lines.append(
            f"multiply-adds this step {human(executed)} of {human(dense)} dense "
            f"({executed / dense:.1%})"
        )
        return Text("\n".join(f"  {line}" for line in lines))


def recipe_note(settings: TrainSettings) -> str | None:
    """Say which recipe is run, what was changed, and whether it is a trial; None: no recipe."""
    recipe = settings.of_recipe()
    if recipe is None:
        return None
    note = f"recipe {recipe['name']} ({recipe['where']})"
    if recipe["changed"]:
        given = ", ".join(as_option(key, value) for key, value in recipe["changed"].items())
        note += f", changed: {given}"
    if recipe["trial"]:
        note += (
            f". A trial run, {settings.epochs} of {recipe['epochs']} epochs: it shows that the "
            "recipe runs; its numbers don't compare with the paper's"
        )
    return note


def as_option(key: str, value: Any) -> str:
    """Return a setting as it is given on the command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def final_table(summary: dict[str, Any], controls: dict[str, dict[str, Any]]) -> Table:
    """Build the table at the end of a run."""
    table = new_table(
        f"{summary['method']}: {summary['network']} on {summary['data']}",
        *("", "result", "against dense"),
    )
    table.add_row(
        f"{summary.get('evaluated_on', 'test')} accuracy, final network",
        f"{summary['test_accuracy']:.1%}",
        f"on {summary['test_images']:,} images",
    )
    samples = summary["test_accuracy_samples"]
    if samples:
        spread = f"{samples['mean']:.1%} ± {samples['sd']:.1%}"
        table.add_row(f"  {samples['n']} sampled masks, mean and sd", spread, "")
        table.add_row("  most probable mask (top-K)", f"{summary['test_accuracy_top_k']:.1%}", "")
    for key, label in (("params", "parameters left"), ("macs", "MACs left, forward, an image")):
        part, whole = summary[key], summary[f"{key}_dense"]
        table.add_row(label, f"{part:,}", f"{part / whole:.1%} of {whole:,}")
        if summary.get(f"keep_{key}") is not None and summary["method"] != "dense":
            table.add_row("  the share that was asked for", "", summary[f"keep_{key}"])
    table.add_section()
    table.add_row(
        "training cost by the paper's formula",
        f"fS/fD {summary['macs_ratio_mean']:.3f}",
        f"{summary['train_cost_saving_paper']:.2f}x",
    )
    table.add_row(
        "MACs executed, as metered",
        human(summary["executed_macs"]),
        f"{summary['train_cost_saving_executed']:.2f}x",
    )
    if summary["time_saving"]:
        table.add_row(
            "time a step, dense steps in between",
            f"{summary['step_seconds'] * 1e3:.1f} ms",
            f"{summary['dense_step_seconds'] * 1e3:.1f} ms: {summary['time_saving']:.2f}x",
        )
    if "data_wait_seconds" in summary:
        seconds = summary["step_seconds"] * summary["steps"]
        waited = summary["data_wait_seconds"]
        share = f"{waited / (waited + seconds):.1%} of training" if seconds else ""
        table.add_row("training waited for data", f"{waited:.1f} s", share)
    if summary.get("unreadable_files"):
        table.add_row("unreadable files, others shown", f"{summary['unreadable_files']}", "")
    memory = f"{summary['peak_memory_bytes'] / 1e6:.0f} MB"
    table.add_row("peak resident set of the process", memory, "")
    if summary.get("device_memory_bytes"):
        memory = f"{summary['device_memory_bytes'] / 1e6:.0f} MB"
        table.add_row("memory of the GPU that was taken", memory, "")
    if (full := summary.get("full_model")) is not None:
        moved = f"{full['bytes_in'] / 1e6:,.0f} MB / {full['bytes_out'] / 1e6:,.0f} MB"
        table.add_row(f"from the full model on {full['where']} / back to it", moved, "")
    if "keep_prob_near_0" in summary:
        table.add_row(
            "keep_prob below .01 / above .99",
            f"{summary['keep_prob_near_0']:.0%} / {summary['keep_prob_near_1']:.0%}",
            f"sum {summary['keep_prob_sum']:.1f}, K {summary['budget']:g}",
        )
    if summary.get("macs_bound") is not None:
        table.add_row(
            "MACs by keep_prob, linear bound",
            human(summary["macs_expected"]),
            f"{human(summary['macs_bound'])}, {summary['macs_bound'] / summary['macs_dense']:.1%}",
        )
    if summary.get("recipe") is not None:
        recipe = summary["recipe"]
        paper = recipe["paper"].get("printed")
        if paper is None:  # a folder of an earlier run
            paper = {key: f"{x:g}" for key, x in recipe["paper"].items() if x is not None}
        accuracy = f"{paper['accuracy']} %" if "accuracy" in paper else "-"
        saving = f"{paper['saving']}x" if "saving" in paper else ""
        table.add_section()
        table.add_row(f"paper, {recipe['where']}", accuracy, saving or "prints no numbers")
        for key, label in (("params", "parameters"), ("macs", "MACs")):
            if key in paper:
                table.add_row(f"  its {label}", "", f"{paper[key]} %")
        if recipe["trial"]:
            table.add_row("  this was a trial run: don't compare", "", "")
    if controls:
        table.add_section()
        for name, control in controls.items():
            table.add_row(
                f"control: {name}",
                f"{control['test_accuracy']:.1%}",
                f"{control['macs'] / summary['macs_dense']:.1%} of MACs left",
            )
    table.caption = "one multiply-add = 1 MAC; FLOPs = 2 x MACs"
    return table
