"""Charts of reports, drawn with Pillow: figures with their intervals, curves, and tables of counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from PIL import Image

INK, FAINT, LINE, PAPER = (28, 30, 36), (112, 118, 130), (222, 224, 230), (255, 255, 255)
DOT, BAND = (36, 92, 168), (166, 196, 232)
#: Told apart without seeing red and green.
LINES = ((36, 92, 168), (213, 94, 0), (0, 158, 115), (122, 63, 160), (230, 159, 0), (86, 180, 233), (110, 110, 116))
_MARGIN, _GAP, _TOP, _ROW, _SIDE = 24, 40, 92, 24, 300
#: Rows of one chart; more cannot be read.
ROWS = 40


@attrs.frozen
class Figure:
    """A figure with its interval; both NaN where there is none."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan


@attrs.frozen(eq=False)
class Chart:
    """One chart of a sheet.

    Attributes
    ----------
    title : above it.
    width, height : pixels that ``draw`` takes.
    draw : takes a pen and the upper left corner.
    """

    title: str
    width: int
    height: int
    draw: Callable[[Any, int, int], None]


def sheet(title: str, charts: Sequence[Chart], note: str = "") -> Image.Image:
    """Charts side by side below a title."""
    from PIL import Image, ImageDraw

    width = max(640, 2 * _MARGIN + sum(chart.width for chart in charts) + _GAP * (len(charts) - 1))
    picture = Image.new("RGB", (width, _TOP + max(chart.height for chart in charts) + _MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, 16), title, INK, font(20))
    pen.text((_MARGIN, 44), note, FAINT, font(13))
    left = _MARGIN
    for chart in charts:
        pen.text((left + chart.width / 2, _TOP - 14), chart.title, INK, font(13), anchor="mm")
        chart.draw(pen, left, _TOP)
        left += chart.width + _GAP
    return picture


def font(size: int) -> Any:
    """The face of all charts."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def figures(title: str, rows: Sequence[Figure], *, low: float | None = None, high: float | None = None) -> Chart:
    """A dot and a bar of its interval for every figure, one a row; undefined ones (NaN) have their name alone.

    Parameters
    ----------
    low, high : ends of the axis; those of the figures without.
    """
    shown = rows[:ROWS]
    names = max((font(13).getlength(_cut(row.name)) for row in shown), default=0)
    finite = [v for row in shown for v in (row.value, row.low, row.high) if math.isfinite(v)] or [0.0, 1.0]
    left, right = min(finite) if low is None else low, max(finite) if high is None else high
    if right - left < 1e-9:
        left, right = left - 0.5, right + 0.5

    def draw(pen: Any, x0: int, y0: int) -> None:
        start, bottom = x0 + names + 12, y0 + _ROW * len(shown)

        def x(value: float) -> float:
            return start + 8 + (value - left) / (right - left) * (_SIDE - 16)

        for mark in ticks(left, right):
            pen.line((x(mark), y0, x(mark), bottom), LINE)
            pen.text((x(mark), bottom + 10), f"{mark:g}", FAINT, font(11), anchor="mm")
        for number, row in enumerate(shown):
            y = y0 + _ROW * number + _ROW / 2
            pen.text((start - 10, y), _cut(row.name), INK, font(13), anchor="rm")
            if math.isfinite(row.low) and math.isfinite(row.high):
                pen.rounded_rectangle((x(row.low), y - 4, x(row.high), y + 4), 4, BAND)
            if math.isfinite(row.value):
                pen.ellipse((x(row.value) - 4, y - 4, x(row.value) + 4, y + 4), DOT)
            else:
                pen.text((start + 8, y), "undefined", FAINT, font(11), anchor="lm")

    return Chart(title, int(names) + 12 + _SIDE, _ROW * len(shown) + 20, draw)


def curves(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> Chart:
    """Lines through points (x, y) in 0..1, the diagonal as a hint, names below."""
    shown = dict(list(lines.items())[: len(LINES)])

    def draw(pen: Any, x0: int, y0: int) -> None:
        left, size = x0 + 40, _SIDE - 40

        def place(x: float, y: float) -> tuple[float, float]:
            return left + x * size, y0 + (1 - y) * size

        for mark in ticks(0, 1):
            pen.line((*place(mark, 0), *place(mark, 1)), LINE)
            pen.line((*place(0, mark), *place(1, mark)), LINE)
            pen.text((place(mark, 0)[0], y0 + size + 10), f"{mark:g}", FAINT, font(11), anchor="mm")
            pen.text((left - 6, place(0, mark)[1]), f"{mark:g}", FAINT, font(11), anchor="rm")
        pen.line((*place(0, 0), *place(1, 1)), LINE, 2)
        pen.text((left + size / 2, y0 + size + 26), across, FAINT, font(11), anchor="mm")
        pen.text((left + 6, y0 + 6), up, FAINT, font(11))
        for number, ((name, points), colour) in enumerate(zip(shown.items(), LINES, strict=False)):
            spots = [place(*point) for point in points]
            if len(spots) > 1:
                pen.line([c for spot in spots for c in spot], colour, 2, joint="curve")
            for x, y in spots if len(spots) <= 20 else ():
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
            y = y0 + size + 46 + 18 * number
            pen.line((left, y, left + 18, y), colour, 3)
            pen.text((left + 26, y), _cut(name), INK, font(13), anchor="lm")

    return Chart(title, _SIDE, _SIDE + 10 + 18 * len(shown), draw)


def matrix(title: str, names: Sequence[str], counts: Sequence[Sequence[float]], across: str, down: str) -> Chart:
    """Counts as a table of cells, each row shaded by its shares; names at the left, numbers 1, 2, ... above them."""
    cell = 46 if len(names) <= 8 else 30
    left = max(font(13).getlength(_cut(f"{n} {name}")) for n, name in enumerate(names, 1)) + 12
    size = cell * len(names)

    def draw(pen: Any, x0: int, y0: int) -> None:
        start = x0 + left
        for row, (name, values) in enumerate(zip(names, counts, strict=True)):
            y = y0 + 18 + cell * row
            pen.text((start - 8, y + cell / 2), _cut(f"{row + 1} {name}"), INK, font(13), anchor="rm")
            pen.text((start + cell * (row + 0.5), y0 + 8), str(row + 1), FAINT, font(11), anchor="mm")
            for column, value in enumerate(values):
                share = value / sum(values) if sum(values) else 0.0
                shade = tuple(round(p + (d - p) * share) for p, d in zip(PAPER, DOT, strict=True))
                x = start + cell * column
                pen.rectangle((x + 1, y + 1, x + cell - 1, y + cell - 1), shade, LINE)
                ink = PAPER if share > 0.5 else INK
                pen.text((x + cell / 2, y + cell / 2), f"{value:g}", ink, font(11), anchor="mm")
        pen.text((start, y0 + 18 + size + 12), f"across: {across}; down: {down}", FAINT, font(11), anchor="lm")

    return Chart(title, max(int(left) + size, 220), size + 40, draw)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, four to eight of them."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _cut(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:31]}..."
