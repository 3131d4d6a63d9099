"""What fig3_variance.py and fig4_properties.py share: measure during training, save, draw."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minicst.checkpoint import write_text
from minicst.settings import TrainSettings
from minicst.variance.command import measure_training
from minicst.variance.point import Sizes
from minicst.variance.report import dumps, sentences

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """A measurement.

    Attributes:
        settings: of the training.
        epochs: when to measure.
        sizes: how much is drawn.
        batch_size: of the fixed mini-batch.
    """

    settings: TrainSettings
    epochs: tuple[int, ...]
    sizes: Sizes
    batch_size: int = 128


def measure_plan(plan: Plan, path: Path, label: str) -> None:
    """Train and measure; the JSON file is written anew after every point."""

    def save(results: dict[str, Any]) -> None:
        write_text(path, dumps({"data_label": label, **results}))

    def says(text: str) -> None:
        print(text, flush=True)

    epochs = list(plan.epochs)
    measure_training(plan.settings, epochs, plan.sizes, plan.batch_size, says, save)


def script(
    doc: str | None,
    name: str,
    whole: Plan,
    quick: Plan,
    plot: Callable[[dict[str, Any], Path], None],
    arguments: list[str] | None = None,
) -> None:
    """Run a figure script: measure if asked to, then draw all NAME*.json files that are there.

    Args:
        doc: the script's docstring.
        name: of the figure.
        whole: --run measures it, on the data of --data-dir.
        quick: --quick measures it, on data that come with the package.
        plot: (results, path of the picture) -> None.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        prog=f"{name}.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="measure anew, on CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="measure the small default network")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10's binary files")
    parser.add_argument("--data-label", default="CIFAR-10", help="what the picture calls the data")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of JSON files and pictures")
    options = parser.parse_args(arguments)
    paths = {"run": options.out / f"{name}.json", "quick": options.out / f"{name}_quick.json"}
    try:
        if options.run:
            if options.data_dir is None:
                raise ValueError("--run needs --data-dir, the folder of CIFAR-10's binary files")
            settings = replace(whole.settings, data_dir=options.data_dir, threads=options.threads)
            measure_plan(replace(whole, settings=settings), paths["run"], options.data_label)
        if options.quick:
            settings = replace(quick.settings, threads=options.threads)
            measure_plan(replace(quick, settings=settings), paths["quick"], settings.data)
        there = [path for path in paths.values() if path.exists()]
        if not there:
            raise ValueError(f"there is no {name}.json in {options.out}: measure with --run")
        for path in there:
            results = json.loads(path.read_text())
            plot(results, path.with_suffix(".png"))
            print(path.with_suffix(".png").name)
            for sentence in sentences(results):
                print(f"  {sentence}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
