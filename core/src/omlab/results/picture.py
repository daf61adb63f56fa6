"""The picture of a result: what one looks at first.

Volumes are shown in three planes through the centre of what was found, in the radiological convention (the patient's
right is on the left), with true proportions, contours, a scale bar and a legend. Drawn with Pillow alone: a plotting
library would take longer to import than this takes to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter, ImageFont

from omlab.cases.types import Case, Image, Volume
from omlab.cases.video import Video
from omlab.errors import OutputError
from omlab.files import whole
from omlab.geometry import Turn
from omlab.results.types import Classification, Label, Result, Segmentation

if TYPE_CHECKING:
    from omlab.prompts import Prompts

BACKGROUND, PANEL, TEXT, FAINT = (17, 19, 24), (0, 0, 0), (236, 238, 242), (140, 147, 160)
MARGIN, GAP, SIDE = 28, 14, 470
#: Opacity of the tint inside of a contour.
TINT = 0.26
#: Hounsfield window of soft tissue.
CT_WINDOW = (-160.0, 240.0)
#: A point of a volume counts as lying in a plane that is so near.
NEAR_MM = 4.0


@attrs.frozen
class Plane:
    """A way of cutting a volume in RAS+ order: which axes are shown, and the letters at the edges."""

    name: str
    axis: int
    letters: tuple[str, str, str, str]  # left, right, top, bottom


PLANES = (
    Plane("axial", 2, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "S", "I")),
    Plane("sagittal", 0, ("A", "P", "S", "I")),
)


def draw(result: Result, case: Case, path: Path, *, title: str = "", prompts: Prompts | None = None) -> Path | None:
    """Draw ``result`` over ``case`` into the PNG ``path``; ``None`` where there is nothing to see (an embedding).

    Parameters
    ----------
    prompts : what was asked, on the grid of the case; drawn over it.

    Raises
    ------
    omlab.errors.OutputError
        The file cannot be written.
    """
    if result.illustration is not None:
        picture = result.illustration(title)
    elif isinstance(result, Segmentation) and isinstance(case, Volume):
        picture = _volume(result, case, title, prompts)
    elif isinstance(result, Segmentation) and isinstance(case, Image):
        picture = _image(result, case, title, prompts)
    elif isinstance(result, Classification) and isinstance(case, Image):
        picture = _classes(result, case, title)
    elif isinstance(case, Video):
        from omlab.results.moving_picture import sheet

        picture = sheet(result, case, title)
    else:
        return None
    if picture is None:
        return None
    try:
        with whole(path) as temporary:
            picture.save(temporary, format="PNG", compress_level=3)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def thumbnail(case: Case, truth: Result | None, side: int) -> Pillow.Image | None:
    """A case in a square of ``side`` pixels, with the outlines of its reference.

    Of a volume it is the axial plane through the middle of what is marked, of a video the middle frame. ``None`` for
    what has no picture.
    """
    labels = truth.labels if isinstance(truth, Segmentation) and not isinstance(case, Video) else None
    structures = truth.structures if isinstance(truth, Segmentation) else ()
    if isinstance(case, Volume):
        turn = Turn.to(case.geometry, "RAS")
        voxels = turn.apply(case.voxels)
        turned = turn.apply(labels) if labels is not None and labels.shape == case.voxels.shape else None
        level = _centre(turned)[2] if turned is not None else voxels.shape[2] // 2
        picture = _grey(_cut(voxels, 2, level), *window(case))
        labels = _cut(turned, 2, level) if turned is not None else None
        across, down = turn.target.spacing_mm[:2]
        extent: tuple[float, float] = (picture.width * across, picture.height * down)
    elif isinstance(case, Image):
        picture = Pillow.fromarray(case.rgb8())
        extent = picture.size
    elif isinstance(case, Video):
        picture = Pillow.fromarray(case.at([case.frame_count // 2])[0])
        extent = picture.size
    else:
        return None
    factor = side / max(extent)
    size = (max(1, round(extent[0] * factor)), max(1, round(extent[1] * factor)))
    if labels is not None and tuple(labels.shape) == (picture.height, picture.width):
        picture = _overlay(picture, labels, structures, size)
    else:
        picture = picture.convert("RGB").resize(size, Pillow.Resampling.BICUBIC)
    square = Pillow.new("RGB", (side, side), PANEL)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _volume(result: Segmentation, case: Volume, title: str, prompts: Prompts | None = None) -> Pillow.Image:
    turn = Turn.to(case.geometry, "RAS")
    voxels, labels = turn.apply(case.voxels), turn.apply(result.labels)
    spacing = turn.target.spacing_mm
    low, high = window(case)
    centre = _centre(labels)
    extent = [n * s for n, s in zip(voxels.shape, spacing, strict=True)]
    scale = SIDE / max(extent)
    panels = []
    for plane in PLANES:
        grey, found = (_cut(array, plane.axis, centre[plane.axis]) for array in (voxels, labels))
        across = [a for a in range(3) if a != plane.axis]
        size = (max(1, round(extent[across[0]] * scale)), max(1, round(extent[across[1]] * scale)))
        panel = _overlay(_grey(grey, low, high), found, result.structures, size)
        if prompts is not None:
            _prompts_in_plane(panel, prompts, result.structures, turn, plane, centre[plane.axis])
        _letters(panel, plane.letters)
        panels.append((plane, panel))
    width = sum(panel.width for _, panel in panels) + GAP * (len(panels) - 1) + 2 * MARGIN
    height = max(panel.height for _, panel in panels)
    legend = _legend(result, width - 2 * MARGIN)
    top = 78
    sheet = Pillow.new("RGB", (width, top + height + 44 + legend.height + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _title(pen, title, case.name)
    left = MARGIN
    for plane, panel in panels:
        sheet.paste(panel, (left, top + (height - panel.height) // 2))
        place = turn.target.to_world(np.array(centre, dtype=float))
        letter = "xyz"[plane.axis]
        pen.text(
            (left, top + height + 10),
            f"{plane.name}, {letter} = {round(float(place[plane.axis]))} mm",
            fill=FAINT,
            font=_font(15),
        )
        left += panel.width + GAP
    _scale_bar(pen, (width - MARGIN, top + height + 14), scale)
    sheet.paste(legend, (MARGIN, top + height + 44))
    return sheet


def _image(result: Segmentation, case: Image, title: str, prompts: Prompts | None = None) -> Pillow.Image:
    rgb = case.rgb8()
    rows, columns = rgb.shape[:2]
    factor = min(900 / max(rows, columns), 6.0)
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    panel = _overlay(Pillow.fromarray(rgb), result.labels, result.structures, size)
    if prompts is not None:
        _prompts(panel, prompts, result.structures, factor)
    width = max(panel.width, 420) + 2 * MARGIN
    legend = _legend(result, width - 2 * MARGIN)
    sheet = Pillow.new("RGB", (width, 78 + panel.height + 16 + legend.height + MARGIN), BACKGROUND)
    _title(ImageDraw.Draw(sheet), title, case.name)
    sheet.paste(panel, (MARGIN, 78))
    sheet.paste(legend, (MARGIN, 78 + panel.height + 16))
    return sheet


def _prompts(panel: Pillow.Image, prompts: Prompts, structures: Sequence[Label], factor: float) -> None:
    """What was asked: boxes dashed in the colour of their structure, points as discs, those of the background
    crossed out."""
    pen = ImageDraw.Draw(panel)
    colours = {label.name: label.colour for label in structures}
    for item in prompts.objects:
        colour = colours.get(item.label, TEXT)
        for box in item.boxes:
            left, top, right, bottom = (factor * (v + 0.5) for v in (*box.low, *box.high))
            for start, end in (
                ((left, top), (right, top)), ((right, top), (right, bottom)),
                ((right, bottom), (left, bottom)), ((left, bottom), (left, top)),
            ):  # fmt: skip
                _dashed(pen, start, end, colour)
        for point in item.points:
            x, y = (factor * (v + 0.5) for v in point.at)
            _disc(pen, x, y, colour, positive=point.positive)


def _prompts_in_plane(
    panel: Pillow.Image, prompts: Prompts, structures: Sequence[Label], turn: Turn, plane: Plane, index: int
) -> None:
    """Points and boxes of a volume on one of its planes: discs for points within :data:`NEAR_MM` of it and rings for
    those farther off; boxes where the plane cuts them."""
    pen = ImageDraw.Draw(panel)
    colours = {label.name: label.colour for label in structures}
    across = [a for a in range(3) if a != plane.axis]
    shape, spacing = turn.target.shape, turn.target.spacing_mm[plane.axis]

    def turned(place: Sequence[float]) -> list[float]:
        at = [place[a] for a in turn.order]
        return [n - 1 - v if f else v for v, n, f in zip(at, shape, turn.flipped, strict=True)]

    def shown(at: Sequence[float]) -> tuple[float, float]:
        x, y = ((shape[a] - 0.5 - at[a]) / shape[a] for a in across)
        return x * panel.width, y * panel.height

    for item in prompts.objects:
        colour = colours.get(item.label, TEXT)
        for box in item.boxes:
            low, high = turned(box.low), turned(box.high)
            if min(low[plane.axis], high[plane.axis]) - 0.5 <= index <= max(low[plane.axis], high[plane.axis]) + 0.5:
                (left, top), (right, bottom) = shown(low), shown(high)
                for start, end in (
                    ((left, top), (right, top)), ((right, top), (right, bottom)),
                    ((right, bottom), (left, bottom)), ((left, bottom), (left, top)),
                ):  # fmt: skip
                    _dashed(pen, start, end, colour)
        for point in item.points:
            at = turned(point.at)
            near = abs(at[plane.axis] - index) * spacing <= NEAR_MM
            _disc(pen, *shown(at), colour, positive=point.positive, full=near)


def _disc(
    pen: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int], *, positive: bool, full: bool = True
) -> None:
    """A point that belongs to its structure, or, crossed out, does not; ``full`` false: a ring only."""
    if not full:
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), outline=colour if positive else FAINT, width=2)
        return
    pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour if positive else PANEL, outline=TEXT, width=2)
    if not positive:
        pen.line((x - 4, y - 4, x + 4, y + 4), fill=TEXT, width=2)
        pen.line((x - 4, y + 4, x + 4, y - 4), fill=TEXT, width=2)


def _dashed(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    for at in np.arange(0, length, 12).tolist():
        ends = [
            tuple(a + (b - a) * min(s, length) / length for a, b in zip(start, end, strict=True)) for s in (at, at + 7)
        ]
        pen.line((*ends[0], *ends[1]), fill=colour, width=2)


def _classes(result: Classification, case: Image, title: str) -> Pillow.Image:
    picture = Pillow.fromarray(case.rgb8())
    factor = SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    order = np.argsort(-result.probabilities)[:10]
    width = MARGIN + picture.width + 34 + 420 + MARGIN
    sheet = Pillow.new("RGB", (width, 78 + max(picture.height, 34 * len(order)) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _title(pen, title, case.name)
    sheet.paste(picture, (MARGIN, 78))
    left = MARGIN + picture.width + 34
    for row, index in enumerate(order.tolist()):
        share, top = float(result.probabilities[index]), 78 + 40 * row
        pen.text((left, top), result.classes[index], fill=TEXT, font=_font(16))
        pen.text((left + 420, top), f"{share:.1%}", fill=TEXT, font=_font(16), anchor="ra")
        pen.rounded_rectangle((left, top + 23, left + 420, top + 29), 3, fill=(44, 48, 58))
        if share > 0.003:
            bar = (86, 180, 233) if row == 0 else (110, 120, 140)
            pen.rounded_rectangle((left, top + 23, left + max(6, 420 * share), top + 29), 3, fill=bar)
    return sheet


def window(case: Volume) -> tuple[float, float]:
    """Darkest and brightest value shown: the soft-tissue window for CT, robust percentiles of the content else."""
    sample = case.voxels[tuple(slice(None, None, max(1, n // 64)) for n in case.voxels.shape)]
    if case.modality == "CT" or (not case.modality and sample.min(initial=0) < -500):
        return CT_WINDOW
    values = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample.ravel()
    content = values[values > values.min(initial=0)] if values.size else values
    if not content.size:
        return 0.0, 1.0
    low, high = np.percentile(content, [1.0, 99.7])
    return float(min(low, values.min())), float(high if high > low else low + 1)


def _centre(labels: NDArray[Any]) -> tuple[int, int, int]:
    """Voxel in the middle of what was found; the middle of the volume if nothing was. Every second voxel is enough."""
    found = labels[::2, ::2, ::2] > 0
    faces = [found.sum(axis=axis, dtype=np.int32) for axis in (0, 2)]
    counts = (faces[1].sum(axis=1), faces[0].sum(axis=1), faces[0].sum(axis=0))
    total = int(counts[0].sum())
    centre = [
        2 * float(count @ np.arange(len(count))) / total if total else (n - 1) / 2
        for count, n in zip(counts, labels.shape, strict=True)
    ]
    return round(centre[0]), round(centre[1]), round(centre[2])


def _cut(array: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """[row, column] of a plane of an RAS+ volume as it is shown: right, anterior and superior first."""
    plane = array[tuple(index if a == axis else slice(None) for a in range(3))]
    return plane[::-1, ::-1].T


def _grey(values: NDArray[Any], low: float, high: float) -> Pillow.Image:
    scaled = (np.nan_to_num(values.astype(np.float32)) - low) * (255.0 / (high - low))
    return Pillow.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")


def _overlay(
    picture: Pillow.Image, labels: NDArray[Any], structures: Sequence[Label], size: tuple[int, int]
) -> Pillow.Image:
    """``picture`` at ``size`` with the labels tinted and outlined. Outlines follow the labels smoothly."""
    canvas = np.asarray(picture.resize(size, Pillow.Resampling.BICUBIC)).astype(np.float32)
    present = set(np.unique(labels).tolist())
    edges: list[tuple[NDArray[np.bool_], Label]] = []
    for label in structures:
        if label.value not in present:
            continue
        shape = Pillow.fromarray(np.where(labels == label.value, 255, 0).astype(np.uint8))
        mask = shape.resize(size, Pillow.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1.2))
        inside = np.asarray(mask) > 127
        canvas[inside] += TINT * (np.array(label.colour, np.float32) - canvas[inside])
        hard = Pillow.fromarray(np.where(inside, 255, 0).astype(np.uint8))
        inner = np.asarray(hard.filter(ImageFilter.MinFilter(5))) > 127
        edges.append((inside & ~inner, label))
    for edge, label in edges:
        soft = Pillow.fromarray(np.where(edge, 255, 0).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
        weight = np.asarray(soft).astype(np.float32)[:, :, None] / 255.0
        canvas += weight * (np.array(label.colour, np.float32) - canvas)
    return Pillow.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _letters(panel: Pillow.Image, letters: tuple[str, str, str, str]) -> None:
    pen = ImageDraw.Draw(panel)
    width, height = panel.size
    places = (
        ((9, height / 2), "lm"),
        ((width - 9, height / 2), "rm"),
        ((width / 2, 6), "mt"),
        ((width / 2, height - 6), "mb"),
    )
    for letter, (place, anchor) in zip(letters, places, strict=True):
        pen.text(place, letter, fill=TEXT, font=_font(17), anchor=anchor, stroke_width=2, stroke_fill=PANEL)


def _title(pen: ImageDraw.ImageDraw, title: str, name: str) -> None:
    pen.text((MARGIN, 18), title or "omlab", fill=TEXT, font=_font(24))
    pen.text((MARGIN, 49), name if len(name) <= 90 else name[:87] + "...", fill=FAINT, font=_font(15))


def _scale_bar(pen: ImageDraw.ImageDraw, right_end: tuple[int, int], scale: float) -> None:
    """A bar of a round length, at most a third of a panel."""
    length = next((mm for mm in (100, 50, 20, 10, 5, 2, 1) if mm * scale <= SIDE / 3), 1)
    right, top = right_end
    left = right - length * scale
    pen.line((left, top + 5, right, top + 5), fill=TEXT, width=3)
    for end in (left, right):
        pen.line((end, top, end, top + 10), fill=TEXT, width=2)
    pen.text((left - 8, top + 5), f"{length} mm", fill=TEXT, font=_font(15), anchor="rm")


def _legend(result: Segmentation, width: int) -> Pillow.Image:
    """Swatch, name and volume of the structures that were found, the largest first, in columns."""
    counts = result.counts()
    millilitres = result.geometry.voxel_volume_mm3 / 1000.0 if result.geometry is not None else None
    rows = []
    for label in result.structures:
        voxels = counts[label.value]
        if voxels:
            size = f"{voxels * millilitres:.1f} ml" if millilitres is not None else f"{voxels} px"
            rows.append((voxels, label.colour, f"{label.name}   {size}"))
    rows.sort(key=lambda row: -row[0])
    if not rows:
        rows = [(0, FAINT, "nothing found")]
    shown = rows[:24]
    if len(rows) > len(shown):
        shown[-1] = (0, FAINT, f"and {len(rows) - len(shown) + 1} more, see result.json")
    columns = max(1, width // 330)
    lines = -(-len(shown) // columns)
    legend = Pillow.new("RGB", (width, 28 * lines), BACKGROUND)
    pen = ImageDraw.Draw(legend)
    for number, (_, colour, text) in enumerate(shown):
        left, top = (number // lines) * (width // columns), (number % lines) * 28
        pen.rounded_rectangle((left, top + 4, left + 18, top + 20), 4, fill=tuple(colour))
        pen.text((left + 28, top + 12), text, fill=TEXT, font=_font(16), anchor="lm")
    return legend
