"""What a cell's names hold: type, shape, dtype and range of every new or changed one."""

from __future__ import annotations

import inspect
import zlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from minicst.autograd import Tensor
from minicst.nn import Module, Network
from minicst.tables import table as new_table

# Containers are looked into this deep; deeper changes go unnoticed.
DEPTH = 4
# Characters of what is said about a name.
NOTE = 60
# A hash of more bytes would be felt between two cells.
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Row:
    """A name as the table shows it; what doesn't apply is empty."""

    name: str
    type: str
    shape: str = ""
    dtype: str = ""
    low: str = ""
    mean: str = ""
    high: str = ""
    note: str = ""


def describe(name: str, value: Any) -> Row:
    """Say what a value is, in a line.

    A tensor's note is about its gradient: none needed, none yet, or its largest entry. A gradient
    that isn't there is never shown as 0.
    """
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return _array_row(name, kind, value.numpy(), gradient_note(value))
    if isinstance(value, np.ndarray):
        return _array_row(name, kind, value, "")
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.generic)):
        text = f"{value:.4g}" if isinstance(value, (float, np.floating)) else repr(value)
        return Row(name, kind, note=_short(text))
    if isinstance(value, Module):
        count = sum(parameter.size for parameter in value.parameters())
        maskable = (
            f", {value.n_maskable} maskable {value.maskable}" if isinstance(value, Network) else ""
        )
        return Row(name, kind, note=f"{count:,} parameters{maskable}")
    if isinstance(value, dict):
        return Row(name, kind, f"{len(value)} entries", note=_short(", ".join(map(str, value))))
    if isinstance(value, (list, tuple, set, frozenset)):
        inside = ", ".join(sorted({type(entry).__name__ for entry in value}))
        return Row(name, kind, f"{len(value)} entries", note=_short(inside and f"of {inside}"))
    if isinstance(value, type):
        return Row(name, "class", note=_short(_first_line(value)))
    if callable(value) and hasattr(value, "__name__"):
        try:
            return Row(name, "function", note=_short(f"{value.__name__}{inspect.signature(value)}"))
        except (TypeError, ValueError):
            return Row(name, "function")
    text = " ".join(repr(value).split())
    says_little = " at 0x" in text or len(text) > NOTE
    return Row(name, kind, note=_short(_first_line(type(value)) if says_little else text))


def gradient_note(tensor: Any) -> str:
    """Say what there is of a tensor's gradient: one that was never computed is not 0."""
    if getattr(tensor, "place", None) is not None and tensor.creator is None:
        return "its tape is used up"
    if not tensor.requires_grad:
        return "needs no gradient"
    if getattr(tensor, "creator", None) is not None:
        return f"made by {type(tensor.creator).__name__}"
    if tensor.grad is None:
        return "no gradient yet"
    grad = tensor.backend.to_numpy(tensor.grad) if isinstance(tensor, Tensor) else tensor.grad
    return f"gradient up to {np.abs(grad).max():.4g}"


def _array_row(name: str, kind: str, array: np.ndarray, note: str) -> Row:
    shape = "×".join(map(str, array.shape)) or "scalar"
    if array.size == 0 or array.dtype.kind not in "biuf":
        return Row(name, kind, shape, str(array.dtype), note=note)
    numbers = array.astype(np.float64)
    bad = int(array.size - np.isfinite(numbers).sum())
    if bad:
        note = f"{bad} not finite{', ' if note else ''}{note}"
    low, mean, high = (f"{f(numbers):.4g}" for f in (np.min, np.mean, np.max))
    return Row(name, kind, shape, str(array.dtype), low, mean, high, note)


def _first_line(of: type) -> str:
    return (of.__doc__ or "").strip().split("\n")[0]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= NOTE else text[: NOTE - 1] + "…"


def fingerprint(value: Any, depth: int = DEPTH) -> Any:
    """Return something that differs when the value's content does.

    Arrays are hashed, containers and objects looked into; a value too large or too deep counts as
    unchanged as long as it's the same object.
    """
    if isinstance(value, Tensor):
        return "tensor", fingerprint(value.data), fingerprint(value.grad), id(value.place)
    if isinstance(value, Module):
        state = dict(value.named_parameters()) | dict(value.named_buffers())
        return id(value), fingerprint(state, depth)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.nbytes > MAX_BYTES:
            return id(value), value.shape
        return value.dtype.str, value.shape, zlib.crc32(np.ascontiguousarray(value).tobytes())
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.generic)):
        return type(value).__name__, repr(value)
    if depth == 0 or isinstance(value, (ModuleType, type)) or inspect.isroutine(value):
        return id(value)
    if isinstance(value, dict):
        return "dict", tuple((str(k), fingerprint(v, depth - 1)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(fingerprint(v, depth - 1) for v in value)
    inside = getattr(value, "__dict__", None)
    if isinstance(inside, dict):
        return id(value), fingerprint(inside, depth - 1)
    return id(value)


class Watch:
    """Tells which names of a namespace are new or changed since it was last asked."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def changes(self, names: dict[str, Any]) -> tuple[list[tuple[bool, Row]], list[str]]:
        """Return [(is new, row)] in the order of the namespace, and the names just imported."""
        shown = {name: value for name, value in names.items() if not name.startswith("_")}
        now = {name: fingerprint(value) for name, value in shown.items()}
        rows, imported = [], []
        for name, print_ in now.items():
            if name in self._before and self._before[name] == print_:
                continue
            if _is_import(shown[name]):
                imported.append(name)
            else:
                rows.append((name not in self._before, describe(name, shown[name])))
        self._before = now
        return rows, imported


def _is_import(value: Any) -> bool:
    """Whether a name was imported: a module, or what another module defines."""
    if isinstance(value, ModuleType):
        return True
    if isinstance(value, type) or inspect.isroutine(value):
        return not str(getattr(value, "__module__", "")).startswith("lesson_")
    return False


def print_names(console: Console, rows: list[tuple[bool, Row]]) -> None:
    """Print new (+) and changed (~) names: arrays as a table, the rest a line each."""
    columns = ("", "name", "type", "shape", "dtype", "min", "mean", "max", "")
    table = new_table("", *columns, left=0)
    for column in (*table.columns[:5], table.columns[-1]):
        column.justify = "left"
    table.columns[-1].no_wrap, table.columns[-1].overflow = False, "fold"  # the rest stays whole
    for new, row in rows:
        if row.dtype:
            numbers = (row.shape, row.dtype, row.low, row.mean, row.high, row.note)
            cells = (Text(cell) for cell in (row.name, row.type, *numbers))
            table.add_row("+" if new else "~", *cells)
    if table.row_count:
        console.print(table)
    for new, row in rows:
        if not row.dtype:
            said = ", ".join(part for part in (row.shape, row.note) if part)
            console.print(Text(f"{'+' if new else '~'}  {row.name}  {row.type}  {said}".rstrip()))
