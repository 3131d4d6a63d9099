"""A little SVG: numbers, texts and the room they take, groups of elements."""

from __future__ import annotations

from html import escape

FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
INK = "#1c2430"
TEXT_SIZE = 10.5


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Estimate the width of a text in pixels.

    Names and words as here need less, also in DejaVu Sans, the widest of FONT.
    """
    narrow = sum(character in " .,:;|/il'()-" for character in text)
    return size * (0.4 * narrow + (0.72 if bold else 0.66) * (len(text) - narrow))


def px(number: float) -> str:
    """Write a number of pixels, to a tenth."""
    return f"{number:.1f}".removesuffix(".0")


def moved(name: str, x: float, y: float, inside: list[str]) -> list[str]:
    """Group elements (class `name`) and move their origin to (x, y)."""
    return [f'<g class="{name}" transform="translate({px(x)} {px(y)})">', *inside, "</g>"]


def label(
    x: float,
    y: float,
    text: str,
    size: float = TEXT_SIZE,
    color: str = INK,
    bold: bool = False,
    anchor: str = "start",
) -> str:
    """Write a text whose baseline starts (anchor "start"), has its middle or ends at (x, y)."""
    style = ' font-weight="bold"' if bold else ""
    style += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return (
        f'<text x="{px(x)}" y="{px(y)}" font-size="{size}" fill="{color}"{style}>'
        f"{escape(text)}</text>"
    )


def wrap(text: str, width: float, size: float) -> list[str]:
    """Break a text into lines by the estimate of its width."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
