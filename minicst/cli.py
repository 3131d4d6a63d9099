"""The command line: `minicst train | lesson | step | macs | graph | planted | ...`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from minicst.bench import BenchSettings
from minicst.counts import MacsSettings
from minicst.explore.command import ExploreSettings
from minicst.graph import GraphSettings
from minicst.info import InfoSettings
from minicst.inspect_step import StepSettings
from minicst.lessons.command import LessonSettings
from minicst.planted import PlantedSettings
from minicst.recipe_table import RecipesSettings
from minicst.selftest.command import SelftestSettings
from minicst.settings import KEEP, TrainSettings
from minicst.tables import console as new_console
from minicst.tables import table as new_table
from minicst.variance.command import VarianceSettings

if TYPE_CHECKING:
    from minicst.job import Job

ERROR = 2
INTERRUPTED = 130
CLOSED = 141  # as a shell reports a program that SIGPIPE ends


def command_type(defaults: TrainSettings) -> Any:
    """Return the union of all commands, with these defaults for train."""
    train = tyro.conf.subcommand("train", default=defaults)
    return (
        Annotated[TrainSettings, train]
        | Annotated[LessonSettings, tyro.conf.subcommand("lesson")]
        | Annotated[ExploreSettings, tyro.conf.subcommand("explore")]
        | Annotated[RecipesSettings, tyro.conf.subcommand("recipes")]
        | Annotated[StepSettings, tyro.conf.subcommand("step")]
        | Annotated[MacsSettings, tyro.conf.subcommand("macs")]
        | Annotated[GraphSettings, tyro.conf.subcommand("graph")]
        | Annotated[PlantedSettings, tyro.conf.subcommand("planted")]
        | Annotated[VarianceSettings, tyro.conf.subcommand("variance")]
        | Annotated[BenchSettings, tyro.conf.subcommand("bench")]
        | Annotated[SelftestSettings, tyro.conf.subcommand("selftest")]
        | Annotated[InfoSettings, tyro.conf.subcommand("info")]
    )


def train_defaults(arguments: list[str]) -> TrainSettings:
    """Return the defaults that --preset and --recipe set.

    Raises:
        ValueError: if one of them is unknown.
    """
    options = {key: given(f"--{key.replace('_', '-')}", arguments) for key in KEEP}
    keep = {key: None for key, value in options.items() if value is not None}
    if "keep_rate" in keep:
        keep["keep_rate"] = TrainSettings.keep_rate  # type: ignore[assignment]
    preset, recipe = given("--preset", arguments), given("--recipe", arguments)
    return TrainSettings.of_preset(preset, recipe, **keep)


def given(option: str, arguments: list[str]) -> str | None:
    """Find the value of an option that must be known before the rest is parsed."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") != option:
            continue
        if equals:
            return value
        if i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code.

    0; 1 if selftest finds an equality that fails, 2 for bad input, 130 for Ctrl-C, 141 if the
    reader of a pipe, as `| head`, is gone.
    """
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is buffered has no reader; the interpreter would try again when it ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return CLOSED


def _main(arguments: list[str] | None) -> int:
    console, errors = new_console(), new_console(stderr=True)
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        command: Any = tyro.cli(
            command_type(train_defaults(arguments)),
            args=arguments,
            prog="minicst",
            description="Completely sparse training of channel-sparse networks, from scratch.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        return run(command, console)
    except KeyboardInterrupt:
        errors.print("minicst: interrupted")
        return INTERRUPTED
    except (ValueError, OSError, MemoryError) as error:
        if debug or isinstance(error, BrokenPipeError):
            raise
        _print_plain(errors, f"minicst: error: {one_line(error)}")
        return ERROR


def _print_plain(console: Console, text: str) -> None:
    """Print a line as it is: a path may hold [brackets] and be longer than the terminal."""
    console.print(text, markup=False, soft_wrap=True)


def one_line(error: Exception) -> str:
    """Say an error in one line."""
    if isinstance(error, MemoryError):
        way_out = (
            "use a smaller --batch-size, --width or, on a GPU, --workspace-mb; --full-model disk "
            "keeps the full network in files"
        )
        return f"out of memory ({error}): {way_out}"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return " ".join(str(error).split())


def run(command: Any, console: Console) -> int:
    """Run a parsed command."""
    if isinstance(command, TrainSettings):
        return run_train(command, console)
    if isinstance(command, RecipesSettings):
        from minicst.recipe_table import print_recipes

        print_recipes(console, command)
        return 0
    if isinstance(command, LessonSettings):
        from minicst.lessons.command import run_lesson

        return run_lesson(command, console)
    if isinstance(command, ExploreSettings):
        return _explore(command, console)
    if isinstance(command, StepSettings):
        return _step(command, console)
    if isinstance(command, MacsSettings):
        from minicst.counts import count, print_counts

        counts = count(command)
        if command.json:
            print(json.dumps(counts))
        else:
            print_counts(console, counts)
        return 0
    if isinstance(command, GraphSettings):
        return _graph(command, console)
    if isinstance(command, PlantedSettings):
        return _planted(command, console)
    if isinstance(command, VarianceSettings):
        return _variance(command, console)
    if isinstance(command, BenchSettings):
        from minicst.bench import print_bench, run_bench

        progress = new_console(stderr=True)
        results = run_bench(command, lambda text: progress.print(text, style="dim", markup=False))
        if command.json:
            print(json.dumps(results))
        else:
            print_bench(console, results)
        return 0
    if isinstance(command, SelftestSettings):
        return _selftest(command, console)
    from minicst.info import collect, print_info

    info = collect()
    if command.json:
        print(json.dumps(info))
    else:
        print_info(console, info)
    return 0


def run_train(settings: TrainSettings, console: Console) -> int:
    """Train, or go on with a run; print the final table."""
    from minicst.checkpoint import write_text
    from minicst.display import LiveDisplay, final_table
    from minicst.runs import draw_curves, finished
    from minicst.training import Stopped, resume, run_controls, train

    if settings.resume is not None:
        folder = settings.resume
        if (summary := finished(folder)) is not None:
            _print_plain(console, f"{folder} is finished already:")
            console.print(final_table(summary, summary.get("controls", {})))
            return 0
        job = resume(folder, settings.threads)
    else:
        job, folder = _new_run(settings)
    with LiveDisplay(console) as display, _stop_on_interrupt() as stop:
        try:
            _, summary = train(job, folder, display, stop)
        except Stopped:
            display.__exit__()
            _print_plain(console, f"stopped; go on with: minicst train --resume {folder}")
            return INTERRUPTED
        display.__exit__()
        draw_curves(job, folder)
        controls: dict[str, Any] = {}
        if job.settings.controls:
            try:
                controls = run_controls(job, summary["macs"], display, stop)
            except Stopped:
                console.print(final_table(summary, {}))
                _print_plain(console, f"controls stopped; the run itself is finished: {folder}")
                return INTERRUPTED
            summary["controls"] = controls
            write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    console.print(final_table(summary, controls))
    _print_plain(console, f"run folder: {folder}")
    return 0


def _new_run(settings: TrainSettings) -> tuple[Job, Path]:
    """Prepare a run, and only if that succeeds leave its folder behind."""
    from minicst.job import prepare
    from minicst.runs import make_folder, write_settings

    if settings.full_model != "disk":
        job = prepare(settings)
        return job, make_folder(job.settings)
    settings.check()
    folder = make_folder(settings)
    try:
        job = prepare(settings, folder=folder)
        assert job.store is not None
        job.store.name(job.full_network, job.method.optimizer)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_settings(job.settings, folder)
    return job, folder


@contextmanager
def _stop_on_interrupt() -> Iterator[Any]:
    """Yield a function that is true after Ctrl-C; a second Ctrl-C stops at once."""
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _check_target(path: Path | None, option: str) -> None:
    """Refuse a file that can't be written before the work is done, not after it.

    Raises:
        ValueError: if its folder isn't there.
    """
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it first")


def _step(settings: StepSettings, console: Console) -> int:
    import numpy as np

    from minicst.inspect_step import print_step, run_step, step_arrays, step_json

    _check_target(settings.save, "--save")
    job, trace = run_step(settings)
    if settings.json:
        print(json.dumps(step_json(job, trace)))
    else:
        print_step(console, job, trace)
    if settings.save is not None:
        arrays: dict[str, Any] = step_arrays(job, trace)
        with open(settings.save, "wb") as file:
            np.savez(file, **arrays)
    return 0


def _graph(settings: GraphSettings, console: Console) -> int:
    from minicst.graph import save_graph

    _check_target(settings.out, "--out")
    _print_plain(console, f"picture {save_graph(settings)}")
    return 0


def _explore(settings: ExploreSettings, console: Console) -> int:
    from minicst.explore.command import run_explore

    path = run_explore(settings, lambda text: _print_plain(console, text))
    if path is not None:
        _print_plain(console, f"written: {path}")
    return 0


def _planted(settings: PlantedSettings, console: Console) -> int:
    from minicst.planted import run_planted, save_planted

    _check_target(settings.out, "--out")
    says = (lambda text: None) if settings.json else lambda text: console.print(text, style="dim")
    results = run_planted(settings, says)
    if settings.out is not None:
        save_planted(results, settings.out)
    if settings.json:
        print(json.dumps(results))
        return 0
    table = new_table(
        f"planted noise in half of the channels: {settings.network} on {settings.data}, keep rate "
        f"{settings.keep_rate:g}, {settings.seeds} seeds",
        *("method", "share on good channels", "test accuracy", "seconds a run"),
    )
    for label, result in results["methods"].items():
        share, accuracy = result["good_share"], result["test_accuracy"]
        table.add_row(
            label,
            f"{share['mean']:.3f} ± {share['sd']:.3f}",
            f"{accuracy['mean']:.1%} ± {accuracy['sd']:.1%}",
            f"{result['seconds_per_run']:.1f}",
        )
    table.caption = f"share of good channels at the start: {results['base_share']:.3f}"
    console.print(table)
    return 0


def _variance(settings: VarianceSettings, console: Console) -> int:
    from minicst.variance.command import run_variance, save_variance
    from minicst.variance.report import print_variance

    _check_target(settings.out, "--out")
    says = (lambda text: None) if settings.json else lambda text: console.print(text, style="dim")
    results = run_variance(settings, says)
    path = save_variance(results, settings)
    if settings.json:
        print(json.dumps(results))
        return 0
    print_variance(console, results)
    _print_plain(console, f"picture {path}, numbers {path.with_suffix('.json')}")
    return 0


def _selftest(settings: SelftestSettings, console: Console) -> int:
    from minicst.selftest.command import FAILED, print_selftest, run_selftest

    progress = new_console(stderr=True)
    found = run_selftest(settings, lambda text: progress.print(text, style="dim", markup=False))
    if settings.json:
        print(json.dumps(found))
    else:
        print_selftest(console, found)
    return 0 if found["passed"] else FAILED


if __name__ == "__main__":
    sys.exit(main())
