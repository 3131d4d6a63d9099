"""Trial runs of recipes: does each start and end here, in how much memory, how fast is a step?

    python figures/trials.py --cifar10 DIR [--cifar100 DIR] [--folder DIR] [--only PART] [--write]

Each run is a process of its own: 1 epoch of a few hundred images, `--dense-probes 0`. CIFAR recipes
keep their batch size of 256, but WRN-28-10 (128); those on image folders take 8 images a step. No
accuracy is shown: a handful of steps gives none. `--write` adds to trials.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from minicst.info import collect
from minicst.recipes import RECIPES, Recipe

OUT = Path(__file__).with_name("trials.json")


def options(recipe: Recipe) -> list[str]:
    """What a trial changes."""
    if recipe.settings["data"] == "folder":
        changed = {"limit": 64, "test-limit": 32, "batch-size": 8, "recalibration-batches": 2}
    elif recipe.settings["network"] == "wrn-28-10":
        changed = {"limit": 512, "test-limit": 128, "batch-size": 128, "recalibration-batches": 2}
    else:
        changed = {"limit": 1024, "test-limit": 256, "recalibration-batches": 2}
    changed |= {"epochs": 1, "dense-probes": 0}
    return [text for key, value in changed.items() for text in (f"--{key}", f"{value}")]


def trial(recipe: Recipe, data_dir: Path) -> dict[str, Any]:
    """Run one; return what its summary and metrics say.

    Raises:
        SystemExit: if the run fails; shows what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            *(sys.executable, "-c", "import sys; from minicst.cli import main; sys.exit(main())"),
            *("train", "--recipe", recipe.name, "--data-dir", str(data_dir), "--out", str(out)),
            *options(recipe),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{recipe.name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        summary = json.loads((out / "summary.json").read_text())
    return {
        "steps": summary["steps"],
        "seconds_per_step": summary["step_seconds"],
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "keep_rate": summary["keep_rate"],
        "macs_share_in_training": summary["macs_ratio_mean"],
        "macs_share_final": summary["macs"] / summary["macs_dense"],
        "params_share_final": summary["params"] / summary["params_dense"],
        "options": " ".join(options(recipe)),
    }


def main() -> None:
    """Run the trials that there is data for."""
    parser = argparse.ArgumentParser(description=__doc__)
    for data in ("cifar10", "cifar100", "folder"):
        parser.add_argument(f"--{data}", type=Path, help="data-dir of these recipes")
    parser.add_argument("--only", default="", help="recipes whose name has this part")
    parser.add_argument("--write", action="store_true", help="add to trials.json")
    arguments = parser.parse_args()
    info = collect()
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"trials": {}}
    found["measured_on"] = {key: info[key] for key in ("python", "versions", "cores", "threads")}
    print(f"{'recipe':36} {'steps':>5} {'s a step':>9} {'peak MB':>8} {'MACs':>7} {'params':>7}")
    for name, recipe in RECIPES.items():
        data_dir = getattr(arguments, recipe.settings["data"])
        if data_dir is None or arguments.only not in name:
            continue
        row = trial(recipe, data_dir)
        print(
            f"{name:36} {row['steps']:5} {row['seconds_per_step']:9.2f} "
            f"{row['peak_memory_bytes'] / 1e6:8.0f} {row['macs_share_final']:7.2%} "
            f"{row['params_share_final']:7.2%}",
            flush=True,
        )
        found["trials"][name] = row
        if arguments.write:
            OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
