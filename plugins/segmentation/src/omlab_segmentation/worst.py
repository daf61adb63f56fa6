"""Pictures of where prediction and reference differ most."""

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
#: Both, only the prediction, only the reference: told apart without seeing red and green.
_COLOURS = ((150, 150, 156), (235, 137, 33), (45, 125, 210))
_NAMES = ("both", "only the prediction", "only the reference")
#: Voxels around a structure that are shown as empty.
_AROUND = 3


@attrs.frozen(eq=False)
class Panel:
    """One structure of one case in the plane in which most voxels differ.

    Attributes
    ----------
    codes : [rows, columns] uint8: 0 neither, 1 both, 2 only the prediction, 3 only the reference.
    aspect : height of a pixel over its width.
    """

    case: str
    structure: str
    dice: float
    codes: NDArray[np.uint8]
    aspect: float


class Worst:
    """The structures of cases with the smallest Dice, as they come; both empty is no difference."""

    def __init__(self) -> None:
        self._panels: list[Panel] = []

    def takes(self, dice: float) -> bool:
        """Is a Dice among the smallest so far? A perfect or undefined one never is."""
        return dice < 1 and (len(self._panels) < KEPT or dice < self._panels[-1].dice)

    def add(
        self, case: str, structure: str, dice: float, found: NDArray[np.bool_], expected: NDArray[np.bool_],
        spacing: tuple[float, ...],
    ) -> None:  # fmt: skip
        """Keep a structure: its masks in prediction and reference, [R, A, S] (an image [rows, columns]), within the box
        of both."""
        codes, aspect = _plane(found, expected, spacing)
        self._panels.append(Panel(case, structure, dice, codes, aspect))
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
        for name, colour in zip(_NAMES, _COLOURS, strict=True):
            pen.rectangle((left, 53, left + 13, 66), fill=colour)
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


def _plane(
    found: NDArray[np.bool_], expected: NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[NDArray[np.uint8], float]:
    """The plane across the axis of the thickest slices where most voxels differ, as a picture; the height of a pixel
    over its width."""
    volume = found.ndim == 3
    if volume:
        axis = max(range(3), key=lambda d: (round(spacing[d], 6), d))
        differs = (found != expected).sum(axis=tuple(d for d in range(3) if d != axis))
        number = int(differs.argmax())
        found, expected = np.take(found, number, axis), np.take(expected, number, axis)
        spacing = tuple(s for d, s in enumerate(spacing) if d != axis)
    codes = np.where(found & expected, 1, np.where(found, 2, np.where(expected, 3, 0))).astype(np.uint8)
    codes = np.pad(codes, _AROUND)
    if volume:
        # The first axis goes to the left and the second up, as radiologists look at a patient.
        return np.ascontiguousarray(codes[::-1, ::-1].T), spacing[1] / spacing[0]
    return codes, spacing[0] / spacing[1]


def _picture(panel: Panel) -> Image:
    from PIL import Image

    palette = np.array([(238, 238, 241), *_COLOURS], np.uint8)
    rows, columns = panel.codes.shape
    scale = _SIDE / max(rows * panel.aspect, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * panel.aspect * scale))
    drawn = Image.fromarray(palette[panel.codes]).resize(size, Image.Resampling.NEAREST)
    square = Image.new("RGB", (_SIDE, _SIDE), (238, 238, 241))
    square.paste(drawn, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return square


def _fitting(pen: Any, text: str, font: Any) -> str:
    while text and pen.textlength(text, font=font) > _SIDE:
        text = f"{text[:-4]}..."
    return text
