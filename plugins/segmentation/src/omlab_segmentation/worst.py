"""Pictures of where prediction and reference differ most: outlines over the scan, or the masks alone without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

#: Structures of cases that are drawn.
KEPT = 8
_SIDE, _GAP, _MARGIN, _CAPTION, _COLUMNS = 236, 14, 24, 42, 4
#: Outlines are drawn so many times larger, then made smaller: no jagged lines.
_FINER = 3
#: Both, only the prediction, only the reference: told apart without seeing red and green.
_BOTH, _PREDICTION, _REFERENCE = (150, 150, 156), (235, 137, 33), (45, 125, 210)
_EMPTY = (238, 238, 241)
_FILLED = (("both", _BOTH), ("only the prediction", _PREDICTION), ("only the reference", _REFERENCE))
_OUTLINED = (("prediction", _PREDICTION), ("reference", _REFERENCE))
#: Opacity of what only one side has, over a scan.
_TINT = 0.25
#: Voxels around a structure that are shown as empty where there is no scan.
_AROUND = 3
#: Sides of what is shown of a scan: so many times those of the structure, and so much at least (mm; pixels of images).
_WIDER, _LEAST = 1.6, 64.0


@attrs.frozen(eq=False)
class Scan:
    """What lies under the outlines.

    Attributes
    ----------
    values : [R, A, S] of a volume, [rows, columns, 3] uint8 of an image.
    window : values that are shown black and white; not used for an image.
    """

    values: NDArray[Any]
    window: tuple[float, float] = (0.0, 255.0)


@attrs.frozen(eq=False)
class Structure:
    """One structure of one case, on axes [R, A, S] (an image [rows, columns]).

    Attributes
    ----------
    prediction, reference : the whole label maps; views do.
    label : its value in both.
    box : around it in both maps.
    spacing : mm along each axis; 1 for pixels.
    scan : of the same shape as the maps, or ``None``.
    """

    prediction: NDArray[Any]
    reference: NDArray[Any]
    label: int
    box: tuple[slice, ...]
    spacing: tuple[float, ...]
    scan: Scan | None = None


@attrs.frozen(eq=False)
class Panel:
    """A structure of a case in the plane in which most voxels differ.

    Attributes
    ----------
    codes : [rows, columns] uint8: 0 neither, 1 both, 2 only the prediction, 3 only the reference.
    aspect : height of a pixel over its width.
    under : [rows, columns, 3] uint8, the scan; ``None`` without one.
    """

    case: str
    structure: str
    dice: float
    codes: NDArray[np.uint8]
    aspect: float
    under: NDArray[np.uint8] | None = None


class Worst:
    """The structures of cases with the smallest Dice, as they come; both empty is no difference."""

    def __init__(self) -> None:
        self._panels: list[Panel] = []

    def takes(self, dice: float) -> bool:
        """Is a Dice among the smallest so far? A perfect or undefined one never is."""
        return dice < 1 and (len(self._panels) < KEPT or dice < self._panels[-1].dice)

    def add(self, case: str, name: str, dice: float, structure: Structure) -> None:
        """Keep the plane of a structure in which most voxels differ."""
        self._panels.append(Panel(case, name, dice, *_plane(structure)))
        self._panels.sort(key=lambda panel: panel.dice)
        del self._panels[KEPT:]

    def __bool__(self) -> bool:
        return bool(self._panels)

    def draw(self, title: str) -> Image:
        """All of them on one sheet, worst first."""
        from PIL import Image, ImageDraw, ImageFont

        columns = min(_COLUMNS, len(self._panels))
        rows = -(-len(self._panels) // columns)
        width = max(2 * _MARGIN + columns * _SIDE + (columns - 1) * _GAP, 640)
        top = 84
        sheet = Image.new("RGB", (width, top + rows * (_SIDE + _CAPTION + _GAP) + _MARGIN - _GAP), (255, 255, 255))
        pen = ImageDraw.Draw(sheet)
        pen.text((_MARGIN, 16), f"{title}: least overlap", fill=(20, 20, 24), font=ImageFont.load_default(22))
        left = _MARGIN
        outlined = all(panel.under is not None for panel in self._panels)
        for name, colour in _OUTLINED if outlined else _FILLED:
            box = (left, 53, left + 13, 66)
            pen.rectangle(box, **({"outline": colour, "width": 3} if outlined else {"fill": colour}))
            pen.text((left + 20, 50), name, fill=(90, 90, 98), font=ImageFont.load_default(15))
            left += 46 + int(pen.textlength(name, font=ImageFont.load_default(15)))
        for number, panel in enumerate(self._panels):
            x = _MARGIN + (number % columns) * (_SIDE + _GAP)
            y = top + (number // columns) * (_SIDE + _CAPTION + _GAP)
            sheet.paste(_picture(panel), (x, y))
            font = ImageFont.load_default(13)
            said = f"{panel.structure}, Dice {panel.dice:.3f}"
            pen.text((x, y + _SIDE + 4), _fitting(pen, said, font), fill=(20, 20, 24), font=font)
            pen.text((x, y + _SIDE + 21), _fitting(pen, panel.case, font), fill=(90, 90, 98), font=font)
        return sheet


def _plane(structure: Structure) -> tuple[NDArray[np.uint8], float, NDArray[np.uint8] | None]:
    """The plane across the axis of the thickest slices where most voxels differ, as a picture; the height of a pixel
    over its width; the scan there."""
    box, spacing, label = structure.box, structure.spacing, structure.label
    volume = len(box) == 3
    axes = list(range(len(box)))
    place: list[Any] = list(box)
    if volume:
        axis = max(axes, key=lambda d: (round(spacing[d], 6), d))
        axes.remove(axis)
        differs = (structure.prediction[box] == label) != (structure.reference[box] == label)
        number = int(differs.sum(axis=tuple(axes)).argmax())
        place[axis] = box[axis].start + number
    if structure.scan is not None:
        shape = structure.reference.shape
        side = max(_LEAST, _WIDER * max((box[d].stop - box[d].start) * spacing[d] for d in axes))
        for d in axes:
            middle, half = (box[d].start + box[d].stop) / 2, side / spacing[d] / 2
            place[d] = slice(max(0, round(middle - half)), min(shape[d], round(middle + half)))
    found, expected = (given[tuple(place)] == label for given in (structure.prediction, structure.reference))
    codes = np.where(found & expected, 1, np.where(found, 2, np.where(expected, 3, 0))).astype(np.uint8)
    if structure.scan is None:
        codes, under = np.pad(codes, _AROUND), None
    else:
        under = _shades(structure.scan, tuple(place))
    down, across = (spacing[d] for d in (reversed(axes) if volume else axes))
    if volume:
        # The first axis goes to the left and the second up, as radiologists look at a patient.
        codes = np.ascontiguousarray(codes[::-1, ::-1].T)
        under = None if under is None else np.ascontiguousarray(under[::-1, ::-1].transpose(1, 0, 2))
    return codes, down / across, under


def _shades(scan: Scan, place: tuple[Any, ...]) -> NDArray[np.uint8]:
    """[..., 3] of the scan at a place."""
    values = scan.values[place]
    if scan.values.dtype == np.uint8 and values.ndim == 3:
        return np.ascontiguousarray(values)
    low, high = scan.window
    scaled = (np.nan_to_num(values.astype(np.float32)) - low) * (255.0 / (high - low))
    return np.repeat(np.clip(scaled, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _picture(panel: Panel) -> Image:
    from PIL import Image

    rows, columns = panel.codes.shape
    scale = _SIDE / max(rows * panel.aspect, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * panel.aspect * scale))
    if panel.under is None:
        palette = np.array([_EMPTY, _BOTH, _PREDICTION, _REFERENCE], np.uint8)
        drawn = Image.fromarray(palette[panel.codes]).resize(size, Image.Resampling.NEAREST)
    else:
        drawn = _over(panel.codes, Image.fromarray(panel.under), size)
    square = Image.new("RGB", (_SIDE, _SIDE), _EMPTY if panel.under is None else (0, 0, 0))
    square.paste(drawn, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return square


def _over(codes: NDArray[np.uint8], scan: Image, size: tuple[int, int]) -> Image:
    """The scan with both outlines, and a tint on what only one side has. Where outlines coincide the reference's, which
    is broader, frames the prediction's."""
    from PIL import Image, ImageDraw

    from omlab.results.outlines import outlines

    large = size[0] * _FINER, size[1] * _FINER
    canvas = np.asarray(scan.resize(large, Image.Resampling.BICUBIC)).astype(np.float32)
    where = np.asarray(Image.fromarray(codes).resize(large, Image.Resampling.NEAREST))
    for code, colour in ((2, _PREDICTION), (3, _REFERENCE)):
        canvas[where == code] += _TINT * (np.array(colour, np.float32) - canvas[where == code])
    drawn = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    factor = np.array([large[1] / codes.shape[0], large[0] / codes.shape[1]])
    for own, colour, width in (((1, 3), _REFERENCE, 9), ((1, 2), _PREDICTION, 4)):
        for loop in outlines(np.isin(codes, own)):
            points = [tuple(point) for point in ((loop + 0.5) * factor)[:, ::-1].tolist()]
            pen.line([*points, points[0]], fill=colour, width=width, joint="curve")
    return drawn.resize(size, Image.Resampling.LANCZOS)


def _fitting(pen: Any, text: str, font: Any) -> str:
    while text and pen.textlength(text, font=font) > _SIDE:
        text = f"{text[:-4]}..."
    return text
