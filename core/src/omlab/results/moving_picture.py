"""The picture of a result on a video: frames from all along it with what was found, and a time line below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from omlab.cases.video import Video
from omlab.results.colours import colour_of
from omlab.results.frames import VideoSegmentation
from omlab.results.picture import BACKGROUND, FAINT, GAP, MARGIN, PANEL, TEXT, _font, _legend, _overlay, _title
from omlab.results.types import Classification, Detections, Result, Scores

TILES, COLUMNS, WIDTH = 12, 4, 300
LINE = 76


@attrs.frozen(eq=False)
class Line:
    """One curve of the time line: seconds and values in 0..1."""

    name: str
    colour: tuple[int, int, int]
    times: Sequence[float]
    values: Sequence[float]


def sheet(result: Result, case: Video, title: str) -> Pillow.Image | None:
    """The picture; ``None`` where there is nothing to see (an embedding)."""
    if isinstance(result, VideoSegmentation):
        found = result.labels.counts.sum(axis=1)
        places = _telling(found)
        masks = {int(result.frames[p]): result.labels[int(p)] for p in places}
        tiles = _tiles(case, list(masks))
        drawn = [_overlay(Pillow.fromarray(f), masks[n], result.structures, _size(f)) for n, f in tiles.items()]
        return _page(case, title, dict(zip(tiles, drawn, strict=True)), _areas(result), _legend(result, _width(tiles)))
    if isinstance(result, Detections) and result.frames is not None:
        chosen, lines = _detected(result, case)
        tiles = _tiles(case, chosen)
        boxed = {n: _boxed(f, result, n) for n, f in tiles.items()}
        return _page(case, title, boxed, lines, _names(result.classes, _width(tiles)))
    if isinstance(result, Classification | Scores):
        lines = _curves(result.columns, case) if isinstance(result, Scores) else []
        tiles = _tiles(case, np.unique(np.linspace(0, case.frame_count - 1, TILES).astype(int)).tolist())
        plain = {n: Pillow.fromarray(f).resize(_size(f), Pillow.Resampling.BICUBIC) for n, f in tiles.items()}
        foot = _shares(result, _width(tiles)) if isinstance(result, Classification) else None
        return _page(case, title, plain, lines, foot)
    return None


def _telling(found: NDArray[np.int64]) -> list[int]:
    """Of each of up to :data:`TILES` stretches of equal length the place where most was found."""
    stretches = np.array_split(np.arange(len(found)), min(TILES, len(found))) if len(found) else []
    return [int(part[np.argmax(found[part])]) for part in stretches]


def _tiles(case: Video, numbers: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    return dict(zip(numbers, case.at(numbers), strict=True)) if numbers else {}


def _size(frame: NDArray[np.uint8]) -> tuple[int, int]:
    rows, columns = frame.shape[:2]
    scale = WIDTH / max(columns, rows)
    return max(1, round(columns * scale)), max(1, round(rows * scale))


def _width(tiles: Mapping[int, Any]) -> int:
    across = min(COLUMNS, max(1, len(tiles)))
    return max(420, across * WIDTH + (across - 1) * GAP)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def _page(
    case: Video, title: str, tiles: Mapping[int, Pillow.Image], lines: Sequence[Line], foot: Pillow.Image | None
) -> Pillow.Image:
    width = _width(tiles)
    tall = max((t.height for t in tiles.values()), default=0)
    rows = -(-len(tiles) // COLUMNS)
    top, step = 78, tall + 30
    strip = _time_line(case, lines, width) if lines else None
    height = top + rows * step + MARGIN
    for part in (strip, foot):
        height += part.height + 14 if part is not None else 0
    page = Pillow.new("RGB", (width + 2 * MARGIN, height), BACKGROUND)
    pen = ImageDraw.Draw(page)
    _title(pen, title, case.name)
    for place, (number, tile) in enumerate(tiles.items()):
        left, down = MARGIN + (place % COLUMNS) * (WIDTH + GAP), top + (place // COLUMNS) * step
        page.paste(tile, (left + (WIDTH - tile.width) // 2, down))
        pen.text((left, down + tall + 5), f"{_clock(case.time_s(number))}   frame {number}", fill=FAINT, font=_font(14))
    down = top + rows * step + 6
    for part in (strip, foot):
        if part is not None:
            page.paste(part, (MARGIN, down))
            down += part.height + 14
    return page


def _time_line(case: Video, lines: Sequence[Line], width: int) -> Pillow.Image:
    """Curves over the length of the video; each is scaled by itself only if it stays far below 1."""
    picture = Pillow.new("RGB", (width, LINE + 24), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, width - 1, LINE), fill=PANEL)
    length = max(case.time_s(case.frame_count), 1e-6)
    highest = max((max(line.values, default=0.0) for line in lines), default=0.0)
    top = 1.0 if highest > 0.25 or highest <= 0 else highest
    for line in lines:
        points = [
            (min(t / length, 1.0) * (width - 1), LINE - 3 - (LINE - 8) * min(max(v / top, 0.0), 1.0))
            for t, v in zip(line.times, line.values, strict=True)
        ]
        if len(points) == 1:
            points.append((width - 1, points[0][1]))
        if points:
            pen.line(points, fill=line.colour, width=2, joint="curve")
    pen.text((0, LINE + 6), "0:00.0", fill=FAINT, font=_font(14))
    pen.text((width, LINE + 6), _clock(length), fill=FAINT, font=_font(14), anchor="ra")
    left = width // 4
    for line in lines:
        pen.text((left, LINE + 6), line.name, fill=line.colour, font=_font(14))
        left += round(_font(14).getlength(line.name)) + 22
    pen.text((left, LINE + 6), f"up to {100 * top:.3g} %", fill=FAINT, font=_font(14))
    return picture


def _areas(result: VideoSegmentation) -> list[Line]:
    table = result.by_frame()
    return [Line(f"area of {s.name}", s.colour, table["time_s"], table[f"{s.name}_share"]) for s in result.structures]


def _detected(result: Detections, case: Video) -> tuple[list[int], list[Line]]:
    """Frames to show, and the best score of each class over time."""
    frames = np.zeros(0, np.int64) if result.frames is None else np.asarray(result.frames)
    best = np.zeros((len(result.classes), case.frame_count), np.float32)
    inside = frames < case.frame_count
    np.maximum.at(best, (np.asarray(result.labels)[inside], frames[inside]), result.scores[inside])
    chosen = _telling((best.max(axis=0) * 1e6).astype(np.int64))
    lines = []
    for kind, name in enumerate(result.classes):
        seen = np.flatnonzero(best[kind])
        step = int(np.median(np.diff(seen))) if len(seen) > 2 else 1  # not every frame may have been looked at
        # A curve that returns to 0 between frames with a box; without this it would bridge the gaps.
        places = np.unique(np.clip(np.concatenate([seen - step, seen, seen + step, [0]]), 0, case.frame_count - 1))
        lines.append(
            Line(name, colour_of(kind + 1), [case.time_s(int(p)) for p in places], best[kind][places].tolist())
        )
    return chosen, lines


def _boxed(frame: NDArray[np.uint8], result: Detections, number: int) -> Pillow.Image:
    size = _size(frame)
    picture = Pillow.fromarray(frame).resize(size, Pillow.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    scale = size[0] / frame.shape[1]
    here = np.flatnonzero(np.asarray(result.frames) == number)
    for index in here[np.argsort(result.scores[here])]:  # the best last, on top
        colour = colour_of(int(result.labels[index]) + 1)
        x0, y0, x1, y1 = (float(v) * scale for v in result.boxes[index])
        pen.rectangle((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), outline=colour, width=2)
        pen.text(
            (x0 + 4, max(y0 - 1, 15)), f"{float(result.scores[index]):.0%}", fill=TEXT, font=_font(13), anchor="ls",
            stroke_width=2, stroke_fill=PANEL,
        )  # fmt: skip
    return picture


def _curves(columns: Mapping[str, Sequence[Any]], case: Video) -> list[Line]:
    """Columns of shares over time, each level from the start to the end of its row."""
    starts, ends = columns.get("start_s"), columns.get("end_s")
    if starts is None or ends is None:
        return []
    times = [float(end) for pair in zip(starts, ends, strict=True) for end in pair]
    shares: dict[str, list[float]] = {}
    for name, values in columns.items():
        numbers = [v for v in values if isinstance(v, float)]
        if name not in ("start_s", "end_s") and len(numbers) == len(values) and all(0 <= v <= 1 for v in numbers):
            shares[name] = np.repeat(numbers, 2).tolist()
    # What a classifier looks for is its last class, which gets the strongest colour.
    return [Line(name, colour_of(len(shares) - i), times, values) for i, (name, values) in enumerate(shares.items())]


def _names(classes: Sequence[str], width: int) -> Pillow.Image:
    """Swatch and name of each class."""
    picture = Pillow.new("RGB", (width, 28), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for kind, name in enumerate(classes):
        left = kind * (width // max(1, len(classes)))
        pen.rounded_rectangle((left, 4, left + 18, 20), 4, fill=colour_of(kind + 1))
        pen.text((left + 28, 12), name, fill=TEXT, font=_font(16), anchor="lm")
    return picture


def _shares(result: Classification, width: int) -> Pillow.Image:
    """A bar for each class, the most probable first."""
    order = np.argsort(-result.probabilities)[:6].tolist()
    picture = Pillow.new("RGB", (width, 38 * len(order)), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for row, index in enumerate(order):
        share, top = float(result.probabilities[index]), 38 * row
        pen.text((0, top), result.classes[index], fill=TEXT, font=_font(16))
        pen.text((width, top), f"{share:.1%}", fill=TEXT, font=_font(16), anchor="ra")
        pen.rounded_rectangle((0, top + 23, width, top + 29), 3, fill=(44, 48, 58))
        bar = (86, 180, 233) if row == 0 else (110, 120, 140)
        pen.rounded_rectangle((0, top + 23, max(6, width * share), top + 29), 3, fill=bar)
    return picture
