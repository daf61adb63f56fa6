"""A picture of how a training went: the loss and the figures of validation by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_SIZE = (460, 300)
_INK, _PALE, _LINES = "#1c1e24", "#dee0e6", ("#245ca8", "#d55e00", "#2f7d32", "#7a3fa0")
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 34, 16, 40
#: What a row of a history says of itself and is no curve.
_NO_CURVE = ("epoch", "step", "seconds", "lr")


def curve_names(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures of a history that have a curve."""
    names = dict.fromkeys(name for row in history for name, value in row.items() if isinstance(value, int | float))
    return [name for name in names if name not in _NO_CURVE]


def draw(history: Sequence[Mapping[str, Any]], title: str = "", best: int | None = None) -> Image.Image:
    """A picture with one panel for losses and one for the other figures, epochs along x; ``best`` marks an epoch.

    Parameters
    ----------
    history : a row an epoch, with ``epoch`` from 1.
    """
    from PIL import Image, ImageDraw

    names = curve_names(history)
    losses = [name for name in names if "loss" in name]
    panels = [panel for panel in (losses, [name for name in names if name not in losses]) if panel]
    picture = Image.new("RGB", (_SIZE[0] * max(1, len(panels)), _SIZE[1]), "white")
    pen = ImageDraw.Draw(picture)
    for place, panel in enumerate(panels):
        _panel(pen, place * _SIZE[0], history, panel, best)
    if title:
        pen.text((_LEFT, 6), title, fill=_INK)
    return picture


def _panel(
    pen: ImageDraw.ImageDraw, x0: int, history: Sequence[Mapping[str, Any]], names: list[str], best: int | None
) -> None:
    points = {name: [(row["epoch"], float(row[name])) for row in history if _finite(row.get(name))] for name in names}
    values = [value for line in points.values() for _, value in line]
    if not values:
        return
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    epochs = [row["epoch"] for row in history]
    first, last = min(epochs), max(epochs)
    left, right = x0 + _LEFT, x0 + _SIZE[0] - _RIGHT
    top, bottom = _TOP, _SIZE[1] - _BOTTOM

    def place(epoch: float, value: float) -> tuple[float, float]:
        along = (epoch - first) / (last - first) if last > first else 0.5
        return left + along * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

    for number in range(5):
        value = low + (high - low) * number / 4
        y = place(first, value)[1]
        pen.line([(left, y), (right, y)], fill=_PALE)
        pen.text((x0 + 4, y - 6), f"{value:.3g}", fill=_INK)
    for epoch in sorted({first, (first + last) // 2, last}):
        pen.text((place(epoch, low)[0] - 6, bottom + 4), str(epoch), fill=_INK)
    pen.text(((left + right) / 2 - 16, bottom + 18), "epoch", fill=_INK)
    if best is not None and first <= best <= last:
        x = place(best, low)[0]
        for y in range(top, bottom, 8):
            pen.line([(x, y), (x, y + 4)], fill="#70768a")
    for number, (name, line) in enumerate(points.items()):
        colour = _LINES[number % len(_LINES)]
        spots = [place(*point) for point in line]
        if len(spots) > 1:
            pen.line(spots, fill=colour, width=2)
        for x, y in spots if len(spots) < 60 else ():
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
        pen.text((left + 6 + 110 * number, _TOP - 14), name.replace("_", " "), fill=colour)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
