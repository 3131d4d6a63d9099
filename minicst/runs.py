"""Run folders: making, resuming, and what a finished one holds."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

from minicst.job import Job
from minicst.methods.completely_sparse import CompletelySparse
from minicst.settings import TrainSettings
from minicst.training import history

RUNS = Path("runs")


def make_folder(settings: TrainSettings) -> Path:
    """Create the run's folder and write settings.json.

    Raises:
        ValueError: if --out exists already, or it can't be written.
    """
    try:
        if settings.out is not None:
            if settings.out.exists():
                raise ValueError(
                    f"{settings.out} exists already: choose another --out, or go on with that run "
                    f"by --resume {settings.out}"
                )
            folder = settings.out
            folder.mkdir(parents=True)
        else:
            folder = _new_folder(settings)
        write_settings(settings, folder)
    except OSError as error:
        raise ValueError(f"can't make the run folder: {error}; choose another --out") from error
    return folder


def write_settings(settings: TrainSettings, folder: Path) -> None:
    """Write settings.json."""
    text = json.dumps(settings.as_json(), indent=2)
    (folder / "settings.json").write_text(text + "\n")


def _new_folder(settings: TrainSettings) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{settings.network}-{settings.data}-{settings.method}-{stamp}"
    for number in itertools.count():
        folder = RUNS / (name if number == 0 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def draw_curves(job: Job, folder: Path) -> None:
    """Write curves.png."""
    from minicst.plots import plot_curves

    keep_prob = None
    if isinstance(job.method, CompletelySparse):
        s = job.method.keep_prob
        keep_prob = {group: s[place] for group, place in job.full_network.groups.items()}
    plot_curves(history(folder), keep_prob, folder / "curves.png")


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run, or None.

    Raises:
        ValueError: if its file is damaged.
    """
    path = folder / "summary.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it, and the run's end is computed again"
        ) from error
