"""What the figure scripts share: arguments, a JSON file written as runs end, pictures."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minicst.checkpoint import write_text
from minicst.pictures import in_style

HERE = Path(__file__).parent

Row = dict[str, Any]


class Results:
    """Rows of measured runs in a JSON file, written when a run ends (at most every five seconds).

    A run whose identifying values are in the file already isn't repeated, so a script that was
    stopped goes on where it stood.

    Args:
        path: of the JSON file.
        settings: what holds for all runs; a file with other settings is refused.

    Attributes:
        settings: as given.
        rows: one for each run: {"run": identifying values, "cpu_seconds", measured values ...}.
        findings: what a script makes of its rows; written along.

    Raises:
        ValueError: if the file was measured with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.rows: list[Row] = []
        self._saved = 0.0
        self.findings: dict[str, Any] = {}
        if path.exists():
            old = json.loads(path.read_text())
            if old["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(
                    f"{path.name} was measured with other settings: move it away, or name another "
                    "folder with --out"
                )
            self.rows, self.findings = old["rows"], old["findings"]

    def measure(self, run: dict[str, Any], work: Callable[[], dict[str, Any]]) -> Row:
        """Return the run's row, from the file or, if it isn't there, from `work`."""
        run = json.loads(json.dumps(run))
        for row in self.rows:
            if row["run"] == run:
                return row
        start = time.process_time()
        values = work()
        # Rounded at once, so that what is made of a row doesn't depend on whence it came.
        row = rounded({"run": run, "cpu_seconds": time.process_time() - start, **values})
        self.rows.append(row)
        if time.monotonic() - self._saved > 5.0:
            self.save()
        print(" ".join(f"{key}={value}" for key, value in run.items()), flush=True)
        return row

    def save(self) -> None:
        """Write the file, one line a row."""
        head = {
            "settings": self.settings,
            "numpy": np.__version__,
            "seconds_are": "CPU seconds of one thread",
            "cpu_seconds_in_all": sum(row["cpu_seconds"] for row in self.rows),
            "findings": self.findings,
        }
        lines = json.dumps(rounded(head), indent=1)[:-2] + ',\n "rows": [\n'
        lines += ",\n".join(json.dumps(row, separators=(",", ":")) for row in self.rows)
        write_text(self.path, lines + "\n ]\n}\n")
        self._saved = time.monotonic()


def rounded(value: Any) -> Any:
    """Return plain data with every float to five significant digits."""
    if isinstance(value, dict):
        return {str(key): rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return bool(value) if isinstance(value, np.bool_) else value


def select(rows: list[Row], **values: Any) -> list[Row]:
    """Rows whose run has these values, a missing one being None."""
    return [r for r in rows if all(r["run"].get(key) == value for key, value in values.items())]


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and the values themselves."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "values": list(values)}


def choose(values_by_option: dict[str, list[float]]) -> dict[str, Any]:
    """Return the option of largest mean, and whether it lies at an end of the grid.

    Args:
        values_by_option: in the grid's order, what each option reached on the tuning seeds.
    """
    means = {option: statistics.fmean(values) for option, values in values_by_option.items()}
    best = max(means, key=lambda option: means[option])
    ends = (next(iter(means)), next(reversed(means)))
    return {"chosen": best, "at_an_end": best in ends, "means": means}


def band(axis: Any, x: Any, curves: Any, label: str, color: str, **style: Any) -> None:
    """Draw the mean of curves (n_seeds, n_points) and the range between smallest and largest."""
    curves = np.asarray(curves, float)
    axis.plot(x, curves.mean(axis=0), label=label, color=color, **style)
    axis.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, lw=0)


def script(
    doc: str | None,
    name: str,
    measure: Callable[[Path, bool], None],
    draw: Callable[[dict[str, Any], Path], None],
    arguments: list[str] | None = None,
) -> None:
    """Run a figure script: measure if asked, then draw NAME.png from NAME.json.

    Args:
        doc: the script's docstring.
        name: of the figure.
        measure: (path of the JSON file, quick) -> None.
        draw: (contents of the JSON file, path of the picture) -> None.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=doc)
    parser.add_argument("--run", action="store_true", help="measure what the JSON file lacks")
    parser.add_argument("--quick", action="store_true", help="a tiny version; needs --out")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder of the JSON file and the picture"
    )
    options = parser.parse_args(arguments)
    if options.quick and options.out.resolve() == HERE.resolve():
        parser.error("--quick would mix with the measured numbers: name a folder with --out")
    path = options.out / f"{name}.json"
    try:
        if options.run or options.quick:
            options.out.mkdir(parents=True, exist_ok=True)
            measure(path, options.quick)
        if not path.exists():
            raise ValueError(f"there is no {path.name} in {options.out}: measure with --run")
        in_style(draw)(json.loads(path.read_text()), path.with_suffix(".png"))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(path.with_suffix(".png"))
