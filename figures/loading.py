"""How fast image files are read, and how long training waits for them.

Prints a table, in Markdown. Without --data-dir it writes a folder of synthetic JPEG files of
ImageNet's usual size (500x375) and measures on that:

    python figures/loading.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minicst.checkpoint import write_text
from minicst.data import Dataset, load_dataset, train_loader
from minicst.randomness import rng_for

WIDTH, HEIGHT, QUALITY = 500, 375, 90
CLASSES = 4


def write_folder(root: Path, count: int) -> None:
    """Write `count` training images and one validation image a class: blurred noise, as JPEG."""
    for half, n in (("train", count), ("val", CLASSES)):
        for number in range(n):
            rng = rng_for(0, "loading", half, number)
            coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            noise = rng.normal(0.0, 12.0, (HEIGHT, WIDTH, 1))  # grain: about 100 kB a file
            pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
            path = root / half / f"class{number % CLASSES}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=QUALITY)


def busy_step(seconds: float) -> Callable[[], None]:
    """Return a fixed amount of matrix products that takes about `seconds` when it runs alone."""
    a = np.ones((256, 256), np.float32)
    for _ in range(50):  # the first products start the threads
        a @ a
    products, taken = 1, 0.0
    while taken < seconds / 4:
        products *= 2
        begun = time.perf_counter()
        for _ in range(products):
            a @ a
        taken = time.perf_counter() - begun
    products = max(1, round(products * seconds / taken))

    def step() -> None:
        for _ in range(products):
            a @ a

    return step


def measure_rate(data: Dataset, batch_size: int, workers: int, epoch: int) -> float:
    """Images a second, nothing done with them, without the first batch."""
    batches = train_loader(data, batch_size, 0, "resized-crop", workers=workers).epoch(epoch)
    next(batches)
    begun = time.perf_counter()
    count = sum(len(batch.labels) for batch in batches)
    return count / (time.perf_counter() - begun)


def measure_waiting(
    data: Dataset, batch_size: int, step: Callable[[], None], prefetch: bool, epoch: int
) -> dict[str, float]:
    """Seconds a step, and the share of them spent waiting, without the first batch."""
    loader = train_loader(data, batch_size, 0, "resized-crop", prefetch=prefetch)
    batches = loader.epoch(epoch)
    next(batches)
    step()
    before, begun, steps = loader.waited_seconds, time.perf_counter(), 0
    for _ in batches:
        step()
        steps += 1
    taken = time.perf_counter() - begun
    waited = loader.waited_seconds - before
    return {"seconds_per_step": taken / steps, "waiting": waited / taken}


def measure(data: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over repeats; within a repeat every case is measured once, one after the other."""
    steps = {"idle": lambda: time.sleep(options.step), "busy": busy_step(options.step)}
    rates: dict[int, list[float]] = {workers: [] for workers in options.workers}
    waits: dict[tuple[str, bool], list[dict[str, float]]] = {
        case: [] for case in itertools.product(steps, (True, False))
    }
    for repeat in range(options.repeats):
        for workers in rates:
            rates[workers].append(measure_rate(data, options.batch_size, workers, repeat))
        for kind, prefetch in waits:
            waits[kind, prefetch].append(
                measure_waiting(data, options.batch_size, steps[kind], prefetch, repeat)
            )
    return {
        "images_per_second": {
            str(workers): statistics.median(values) for workers, values in rates.items()
        },
        "waiting": [
            {
                "step": kind,
                "prefetch": prefetch,
                "seconds_per_step": statistics.median(row["seconds_per_step"] for row in rows),
                "waiting": statistics.median(row["waiting"] for row in rows),
            }
            for (kind, prefetch), rows in waits.items()
        ],
    }


def table(results: dict[str, Any]) -> str:
    """Return both tables, Markdown."""
    lines = ["| decoding threads | images/s |", "|---|---|"]
    lines += [f"| {n} | {rate:.0f} |" for n, rate in results["images_per_second"].items()]
    lines += ["", "| training step | prefetch | seconds a step | waiting |", "|---|---|---|---|"]
    for row in results["waiting"]:
        prefetch = "on" if row["prefetch"] else "off"
        lines.append(
            f"| {row['step']} | {prefetch} | {row['seconds_per_step']:.3f} | {row['waiting']:.1%} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="loading.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="image folder with train/ and val/")
    parser.add_argument("--images", type=int, default=256, help="training images used")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="decoding threads")
    parser.add_argument(
        "--step",
        type=float,
        default=0.4,
        help="seconds of a training step: an idle one waits, as for a GPU; a busy one computes",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args(arguments)
    try:
        if options.images < 2 * options.batch_size or options.repeats < 1 or options.step <= 0:
            raise ValueError("two batches of images, one repeat and a step above 0 are needed")
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.data_dir
            if folder is None:
                folder = Path(temporary)
                write_folder(folder, options.images)
            data = load_dataset(
                "folder", data_dir=folder, image_size=options.image_size, limit=options.images
            )
            results = measure(data, options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(table(results))
    if options.json is not None:
        used = {key: value for key, value in vars(options).items() if key not in ("json",)}
        used["data_dir"] = None if options.data_dir is None else options.data_dir.name
        write_text(options.json, json.dumps({"settings": used, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
