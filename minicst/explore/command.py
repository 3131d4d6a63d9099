"""`minicst explore`: a window with sliders, or a page where there is no display."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minicst.explore.problem import HIGHEST, LOWEST, State, mask_number

PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class ExploreSettings:
    """Move s, alpha and losses of a 2-channel problem and see gradient, variance, projection."""

    keep_prob: Annotated[tuple[float, float], tyro.conf.arg(aliases=["--s"])] = State.keep_prob
    """s1 and s2 at the start, in [0.02, 0.98]."""
    precondition_power: Annotated[float, tyro.conf.arg(aliases=["--alpha"])] = (
        State.precondition_power
    )
    """alpha at the start, in [0, 1]."""
    keep_prob_lr: Annotated[float, tyro.conf.arg(aliases=["--eta"])] = State.keep_prob_lr
    """eta, the step size, in (0, 1]: z = s - eta times the estimate."""
    budget: float = State.budget
    """K of s1 + s2 <= K, in (0, 2]."""
    losses: tuple[float, float, float, float] = State.losses
    """Losses of the masks 00, 10, 01, 11 (10: channel 1 is kept, channel 2 isn't)."""
    level: float = State.level
    """Added to all four losses, 0 or more."""
    pair: tuple[str, str] = ("11", "01")
    """The drawn masks m and m'; their losses are the two that have sliders."""
    out: Path | None = None
    """Write a file in place of the window: .html a page with sliders, .png or .svg a picture of
    the start. Without a display: explore.html in the working folder by default."""
    debug: bool = False
    """Show the traceback of an error."""

    def state(self) -> State:
        """Where the sliders stand at the start.

        Raises:
            ValueError: if a value is impossible.
        """
        for name, value in zip(("s1", "s2"), self.keep_prob, strict=True):
            if not LOWEST <= value <= HIGHEST:
                raise ValueError(
                    f"--keep-prob: {name} is {value:g}; it must be in [{LOWEST}, {HIGHEST}]: at 0 "
                    "and 1 the score (m - s) / (s (1 - s)) of a mask with m != s doesn't exist, "
                    "and next to them it leaves every picture"
                )
        if not 0.0 <= self.precondition_power <= 1.0:
            raise ValueError(f"--alpha {self.precondition_power:g}: alpha must be in [0, 1]")
        if not 0.0 < self.keep_prob_lr <= 1.0:
            raise ValueError(f"--eta {self.keep_prob_lr:g}: the step size must be in (0, 1]")
        if not 0.0 < self.budget <= 2.0:
            raise ValueError(
                f"--budget {self.budget:g}: K must be in (0, 2]; with two channels 2 keeps all"
            )
        numbers = {"--losses": self.losses, "--level": (self.level,)}
        for option, values in numbers.items():
            for value in values:
                if not (math.isfinite(value) and abs(value) <= 1000.0):
                    raise ValueError(f"{option} {value:g}: a number of at most 1000 is needed")
        if self.level < 0.0:
            raise ValueError(f"--level {self.level:g}: it is added to the losses, 0 or more")
        mask_a, mask_b = (mask_number(text, "--pair") for text in self.pair)
        return State(
            keep_prob=self.keep_prob,
            precondition_power=self.precondition_power,
            keep_prob_lr=self.keep_prob_lr,
            budget=self.budget,
            losses=self.losses,
            level=self.level,
            drawn=(mask_a, mask_b),
        )


def run_explore(
    settings: ExploreSettings, says: Callable[[str], None] = lambda text: None
) -> Path | None:
    """Open the window until it is closed, or write a file and return its path.

    Args:
        settings: where the sliders stand, and --out.
        says: takes progress lines.

    Raises:
        ValueError: if a setting is impossible or the file can't be written.
    """
    state, path = settings.state(), settings.out
    _check_target(path)
    if path is None:
        from minicst.explore.window import show

        if show(state, says):
            return None
        path = Path("explore.html")
        says(f"there is no display to open a window on: writing the page {path}")
    if path.suffix in PICTURES:
        from minicst.explore.drawing import save_picture

        save_picture(state, path)
        return path
    from minicst.explore.page import save_page

    save_page(state, path, says)
    return path


def _check_target(path: Path | None) -> None:
    """Refuse a file that can't be written before the work is done.

    Raises:
        ValueError: if its folder isn't there, it is one, or its kind is unknown.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"--out {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"--out {path}: is a directory; name a file, as {path / 'explore.html'}")
    if path.suffix not in (".html", *PICTURES):
        raise ValueError(
            f"--out {path}: name a .html (a page with sliders), .png or .svg (a picture) file"
        )
