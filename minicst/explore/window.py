"""The window: a figure with sliders for everything, and two choices of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from matplotlib.widgets import RadioButtons, Slider

from minicst.explore.drawing import BLUE, GRAY, ORANGE, draw, panels_of
from minicst.explore.problem import HIGHEST, LOWEST, MASK_NAMES, Frame, State, frame

SIZE = (15.0, 9.0)
_BOTTOM = 0.30  # of the figure's height belongs to the sliders
_HELP = (
    "↑ ↓ choose a slider, ← → move it.  s stays in [0.02, 0.98]: at 0 and 1 a mask with m ≠ s is "
    "never drawn and has no score.\nL(m) and L(m′) are the losses of the drawn masks: moving one "
    "changes that mask's loss at the square's corner, and with it Φ and every estimate."
)


def show(state: State, says: Callable[[str], None] = lambda text: None) -> bool:
    """Open the window and wait until it is closed; False where there is no display for one."""
    import matplotlib.pyplot as plt

    with plt.rc_context({"keymap.back": ["backspace"], "keymap.forward": []}):
        try:
            figure = plt.figure("minicst explore", figsize=SIZE)
        except (ImportError, RuntimeError):  # a backend by name that can't open a window here
            return False
        if figure.canvas.required_interactive_framework is None:
            plt.close(figure)
            return False
        says("a window opens; q closes it")
        window = Window(state, figure)
        plt.show()
        del window  # it had to live as long as the window
    return True


class Window:
    """Sliders that redraw the panels; works on a figure of any backend.

    Args:
        state: where the sliders stand.
        figure: empty, of about SIZE.

    Attributes:
        state: where the sliders stand now.
        shown: its frame.
        sliders: {name: Slider}; s1, s2, alpha, eta, K, level, loss_a, loss_b.
        choices: the two RadioButtons of m and m'.
    """

    def __init__(self, state: State, figure: Any) -> None:
        self.state, self.figure = state, figure
        self.shown: Frame = frame(state)
        self.panels = panels_of(figure, _BOTTOM)
        self._quiet = False
        self._active = 0
        self.sliders: dict[str, Slider] = {}
        low, high = min(0.0, *state.losses), max(2.0, *state.losses)
        columns: list[list[tuple[str, str, float, float, float]]] = [
            [
                ("s1", "s₁", LOWEST, HIGHEST, state.keep_prob[0]),
                ("s2", "s₂", LOWEST, HIGHEST, state.keep_prob[1]),
                ("alpha", "α of H^α", 0.0, 1.0, state.precondition_power),
                ("eta", "η, step size", 0.01, 1.0, state.keep_prob_lr),
            ],
            [
                ("loss_a", "", low, high, 0.0),
                ("loss_b", "", low, high, 0.0),
                ("level", "level of all losses", 0.0, max(10.0, state.level), state.level),
                ("K", "budget K", 0.05, 2.0, state.budget),
            ],
        ]
        for x, rows in zip((0.10, 0.43), columns, strict=True):
            for row, (name, label, least, most, value) in enumerate(rows):
                axes = figure.add_axes((x, 0.215 - 0.043 * row, 0.20, 0.03))
                color = ORANGE if name.startswith("loss") else BLUE
                slider = Slider(axes, label, least, most, valinit=value, color=color)
                slider.vline.set_visible(False)
                slider.on_changed(self._moved(name))
                self.sliders[name] = slider
        self.choices = [self._choice(0.72, "drawn m", 0), self._choice(0.85, "drawn m′", 1)]
        figure.text(0.05, 0.015, _HELP, fontsize=9, color=GRAY)
        figure.canvas.mpl_connect("key_press_event", self._key)
        self._mark_active()
        self._label_losses()
        draw(self.shown, self.panels)

    def _choice(self, x: float, title: str, which: int) -> RadioButtons:
        axes = self.figure.add_axes((x, 0.075, 0.10, 0.165))
        axes.set_title(title, fontsize=10)
        buttons = RadioButtons(axes, MASK_NAMES, active=self.state.drawn[which])
        buttons.on_clicked(lambda name: self.choose(which, MASK_NAMES.index(name)))
        return buttons

    def choose(self, which: int, number: int) -> None:
        """Take another mask as m (0) or m' (1); its loss gets the slider."""
        drawn = list(self.state.drawn)
        drawn[which] = number
        self.state = replace(self.state, drawn=(drawn[0], drawn[1]))
        self._label_losses()
        self._redraw()

    def _label_losses(self) -> None:
        """Name the two loss sliders after their masks and set them to those masks' losses."""
        with self._silence():
            for name, sign, number in zip(
                ("loss_a", "loss_b"), ("L(m)", "L(m′)"), self.state.drawn, strict=True
            ):
                slider = self.sliders[name]
                slider.label.set_text(f"{sign}, mask {MASK_NAMES[number]}")
                slider.set_val(self.state.losses[number])

    @contextmanager
    def _silence(self) -> Iterator[None]:
        """Sliders that are set within don't redraw."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _moved(self, name: str) -> Callable[[float], None]:
        def moved(value: float) -> None:
            if self._quiet:
                return
            self.state = self._state_with(name, float(value))
            if name.startswith("loss"):  # where m = m' both sliders are the same loss
                self._label_losses()
            self._redraw()

        return moved

    def _state_with(self, name: str, value: float) -> State:
        state = self.state
        if name in ("s1", "s2"):
            s1, s2 = state.keep_prob
            return replace(state, keep_prob=(value, s2) if name == "s1" else (s1, value))
        if name in ("loss_a", "loss_b"):
            losses = list(state.losses)
            losses[state.drawn[name == "loss_b"]] = value
            return replace(state, losses=(losses[0], losses[1], losses[2], losses[3]))
        field = {"alpha": "precondition_power", "eta": "keep_prob_lr", "K": "budget"}
        changes: dict[str, Any] = {field.get(name, name): value}
        return replace(state, **changes)

    def _redraw(self) -> None:
        self.shown = frame(self.state)
        draw(self.shown, self.panels)
        self.figure.canvas.draw_idle()

    def _key(self, event: Any) -> None:
        """Arrow keys: up and down choose a slider, left and right move it."""
        if event.key in ("up", "down"):
            self._active = (self._active + (1 if event.key == "down" else -1)) % len(self.sliders)
            self._mark_active()
            self.figure.canvas.draw_idle()
        if event.key in ("left", "right"):
            slider = list(self.sliders.values())[self._active]
            step = (slider.valmax - slider.valmin) / 48.0
            value = slider.val + (step if event.key == "right" else -step)
            slider.set_val(min(slider.valmax, max(slider.valmin, value)))

    def _mark_active(self) -> None:
        for i, slider in enumerate(self.sliders.values()):
            slider.label.set_fontweight("bold" if i == self._active else "normal")
