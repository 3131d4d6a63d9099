"""What table4.py and table5.py share: numbers of a `minicst bench` run, written and drawn."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import HERE, rounded

from minicst.bench import BenchSettings, run_bench
from minicst.checkpoint import write_text

NETWORKS = ("vgg19", "resnet32")

Extract = Callable[[dict[str, Any]], dict[str, Any]]
Draw = Callable[[dict[str, Any], Path], None]


def script(
    doc: str | None, name: str, extract: Extract, draw: Draw, arguments: list[str] | None = None
) -> None:
    """Run a table's script: take numbers from a bench run, new or given, and draw NAME.png.

    Args:
        doc: the script's docstring.
        name: of the table.
        extract: makes the table's numbers of run_bench's results.
        draw: (contents of NAME.json, path of the picture) -> None.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=doc)
    parser.add_argument(
        "--run", action="store_true", help="run the bench (minutes, on a quiet CPU)"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, help="what minicst bench --json printed"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny bench; needs --out")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of JSON file and picture")
    options = parser.parse_args(arguments)
    if options.quick and options.out.resolve() == HERE.resolve():
        parser.error("--quick would mix with the measured numbers: name a folder with --out")
    path = options.out / f"{name}.json"
    try:
        results = None
        if options.source is not None:
            results = json.loads(options.source.read_text())
        elif options.run or options.quick:
            results = run_bench(bench_settings(options.quick), print)
        if results is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            table = rounded(source(results) | extract(results))
            write_text(path, json.dumps(table, indent=1) + "\n")
        if not path.exists():
            raise ValueError(f"there is no {path.name} in {options.out}: measure with --run")
        draw(json.loads(path.read_text()), path.with_suffix(".png"))
    except KeyError as error:
        parser.error(f"the numbers lack {error}: bench with --only steps, at least")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(path.with_suffix(".png"))


def bench_settings(quick: bool) -> BenchSettings:
    """Whole steps of VGG-19 and ResNet-32 doubled; quick: of a tiny network."""
    if quick:
        return BenchSettings(("vgg-tiny",), batch_size=4, pairs=1, only=("steps",), peers=())
    return BenchSettings(NETWORKS, only=("steps",), peers=())


def source(results: dict[str, Any]) -> dict[str, Any]:
    """Where the numbers come from."""
    return {"settings": results["settings"], "machine": results["machine"]}


def caption(data: dict[str, Any]) -> str:
    """Settings and machine, in words."""
    machine, settings = data["machine"], data["settings"]
    return (
        f"minicst: {machine['threads']} threads of {machine['cpu']}, batch "
        f"{settings['batch_size']}, whole steps, medians of {settings['pairs']} turns"
    )
