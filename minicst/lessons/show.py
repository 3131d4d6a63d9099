"""`p NAME`: an array as a table of numbers, or as a small heat map where it is too large."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from minicst.autograd import Tensor
from minicst.lessons.names import gradient_note

# A table of more numbers than this is not read; a heat map is.
MAX_ROWS, MAX_COLUMNS = 16, 12
MAP_ROWS, MAP_COLUMNS = 24, 36
SHADES = " .:-=+*#%@"


def show(console: Console, name: str, value: Any) -> None:
    """Print a value: arrays of up to 16 x 12 as numbers, larger ones as a heat map.

    Of more than two axes (1s left out) the first entry of each leading axis is shown, and said.
    """
    if isinstance(value, Tensor):
        console.print(Text(f"{name}: {type(value).__name__}, {gradient_note(value)}"))
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        console.print(Text(f"{name} = {value!r}"))
        return
    shape = "×".join(map(str, value.shape)) or "scalar"
    if value.size == 0 or value.dtype.kind not in "biuf":
        console.print(Text(f"{name}, {shape} {value.dtype}: {value!r}"))
        return
    shown, place = _plane(value)
    console.print(Text(f"{name}{place}, of {shape} {value.dtype}" if place else f"{name}, {shape}"))
    if shown.shape[0] <= MAX_ROWS and shown.shape[1] <= MAX_COLUMNS:
        console.print(_numbers(shown))
    else:
        console.print(_heat_map(console, shown))


def _plane(array: np.ndarray) -> tuple[np.ndarray, str]:
    """A 2-D part of an array, and how to write it."""
    squeezed = np.squeeze(array)
    if squeezed.ndim <= 1:
        return squeezed.reshape(1, -1), ""
    leading = squeezed.ndim - 2
    plane = squeezed[(0,) * leading] if leading else squeezed
    return plane, f"[{', '.join(['0'] * leading + [':', ':'])}]" if leading else ""


def _numbers(plane: np.ndarray) -> Text:
    if plane.dtype.kind in "biu":
        cells = [[str(int(x)) for x in row] for row in plane]
    else:
        cells = [[f"{x:.4g}" for x in row] for row in plane]
    width = max(len(cell) for row in cells for cell in row) + 2
    head = len(str(len(cells) - 1)) + 2
    lines = [" " * head + "".join(f"{j:>{width}}" for j in range(plane.shape[1]))]
    lines += [
        f"{i:>{head - 1}} " + "".join(f"{cell:>{width}}" for cell in row)
        for i, row in enumerate(cells)
    ]
    return Text("\n".join(lines))


def _heat_map(console: Console, plane: np.ndarray) -> Text:
    """Colors of cividis (dark is low), or characters where there is no color."""
    numbers = plane.astype(np.float64)
    if numbers.shape[0] == 1:  # a long vector, wrapped
        missing = -numbers.size % MAP_COLUMNS
        numbers = np.append(numbers, [np.nan] * missing).reshape(-1, MAP_COLUMNS)
    note = ""
    if numbers.shape[0] > MAP_ROWS or numbers.shape[1] > MAP_COLUMNS:
        numbers, note = _blocks(numbers)
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scaled = (numbers - low) / (high - low if high > low else 1.0)
    text = Text()
    for row in scaled:
        for x in row:
            text.append(*_cell(console, x))
        text.append("\n")
    text.append(f"{low:.4g} ")
    for x in np.linspace(0, 1, 10):
        text.append(*_cell(console, x))
    text.append(f" {high:.4g}{note}")
    return text


def _cell(console: Console, x: float) -> tuple[str, str]:
    if not np.isfinite(x):
        return "  ", ""
    if console.color_system is None:
        return SHADES[min(int(x * len(SHADES)), len(SHADES) - 1)] * 2, ""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return "  ", f"on {to_hex(colormaps['cividis'](x))}"


def _blocks(numbers: np.ndarray) -> tuple[np.ndarray, str]:
    """Means of blocks, so that it fits."""
    steps = [
        -(-size // most) for size, most in zip(numbers.shape, (MAP_ROWS, MAP_COLUMNS), strict=True)
    ]
    rows = range(0, numbers.shape[0], steps[0])
    columns = range(0, numbers.shape[1], steps[1])
    means = [[numbers[i : i + steps[0], j : j + steps[1]].mean() for j in columns] for i in rows]
    return np.array(means), f"   each cell is the mean of {steps[0]} × {steps[1]} numbers"
