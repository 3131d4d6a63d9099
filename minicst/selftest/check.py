"""What a check finds: how far two computations lie apart, and how far they may."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = ("float32", "float64")
Pair = tuple[Any, Any]  # computed, wanted: arrays of the host


@dataclass(frozen=True)
class Tolerance:
    """Largest error that passes, and why it isn't smaller."""

    value: float
    reason: str


@dataclass(frozen=True)
class Result:
    """One check's outcome.

    Attributes:
        part: of the report.
        name: of the operation, or of what was compared.
        dtype: of the arrays.
        error: largest error relative to its tensor's largest magnitude; inf where shapes, dtypes or
            the places of NaN differ.
        tolerance: see there.
        raised: the error that stopped the check, if any.
    """

    part: str
    name: str
    dtype: str
    error: float
    tolerance: Tolerance
    raised: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return not self.raised and self.error <= self.tolerance.value

    def as_json(self) -> dict[str, Any]:
        """Plain data; JSON has no infinity, so an error that isn't finite is None."""
        return {
            "part": self.part,
            "name": self.name,
            "dtype": self.dtype,
            "error": self.error if np.isfinite(self.error) else None,
            "tolerance": self.tolerance.value,
            "reason": self.tolerance.reason,
            "passed": self.passed,
            **({"raised": self.raised} if self.raised else {}),
        }


def largest_error(actual: Any, wanted: Any, floor: float = 0.0) -> float:
    """Return max |actual - wanted| / max |wanted|; 0 exactly where all numbers are equal.

    Args:
        actual: array of the host.
        wanted: array of the host.
        floor: smallest divisor, for tensors that are 0 but for rounding.

    Returns:
        The error; inf where shape, dtype or the places of NaN and inf differ.
    """
    a, b = np.asarray(actual), np.asarray(wanted)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return float("inf")
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    scale = max(float(np.abs(b).max()), floor)
    return float(np.abs(a - b).max()) / scale if scale else float("inf")


def checked(
    part: str, name: str, dtype: str, tolerance: Tolerance, pairs: Callable[[], Iterable[Pair]]
) -> Result:
    """Compute the pairs and judge the worst; whatever is raised on the way is the outcome."""
    try:
        errors = [largest_error(*pair) for pair in pairs()]
    except Exception as error:  # of any library: the report says it, and the other checks run
        return failure(part, name, dtype, tolerance, error)
    return Result(part, name, dtype, max(errors, default=float("inf")), tolerance)


def failure(part: str, name: str, dtype: str, tolerance: Tolerance, error: Exception) -> Result:
    """The outcome of a check that raised."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Result(part, name, dtype, float("inf"), tolerance, said[:300])
