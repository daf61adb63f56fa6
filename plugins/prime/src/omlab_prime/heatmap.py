"""Every single substitution of a protein as a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from omlab.results.picture import BACKGROUND, FAINT, MARGIN, TEXT
from omlab_prime.vocabulary import AMINO_ACIDS

#: Residues in one row of the picture, and pixels of one cell.
ROW, CELL = 100, 11
#: Scores worse than most, neutral, better than the wild type.
WORSE, NEUTRAL, BETTER = (49, 79, 183), (233, 233, 236), (200, 48, 54)
_LEFT, _HEAD, _FOOT = 30, 16, 30


def draw(scores: NDArray[np.floating[Any]], residues: str, *, title: str, name: str) -> Image.Image:
    """A row of cells an amino acid, a column a position, wrapped; red is better than the wild type, which is dotted.

    Parameters
    ----------
    scores : [residues, 20], columns in the order of :data:`omlab_prime.vocabulary.AMINO_ACIDS`.
    """
    font, large = ImageFont.load_default(size=10), ImageFont.load_default(size=20)
    limit = max(float(np.quantile(np.abs(scores), 0.98)), 1e-6)
    columns = min(ROW, len(residues))
    bands = -(-len(residues) // ROW)
    band = _HEAD + len(AMINO_ACIDS) * CELL + _FOOT
    width = max(2 * MARGIN + _LEFT + columns * CELL, 460)
    sheet = Image.new("RGB", (width, 92 + bands * band + 34), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 22), title, TEXT, large)
    pen.text((MARGIN, 50), f"{name}: score of every substitution", FAINT, font)
    for number in range(bands):
        part = slice(number * ROW, min((number + 1) * ROW, len(residues)))
        _band(sheet, pen, scores[part], residues[part], part.start, 80 + number * band, limit, font)
    _scale(sheet, pen, limit, 92 + bands * band, font)
    return sheet


def _band(
    sheet: Image.Image,
    pen: Any,
    scores: NDArray[np.floating[Any]],
    residues: str,
    first: int,
    top: int,
    limit: float,
    font: Any,
) -> None:
    left = MARGIN + _LEFT
    cells = Image.fromarray(np.ascontiguousarray(_colours(scores, limit).transpose(1, 0, 2)))
    size = (cells.width * CELL, cells.height * CELL)
    sheet.paste(cells.resize(size, Image.Resampling.NEAREST), (left, top + _HEAD))
    for row, letter in enumerate(AMINO_ACIDS):
        pen.text((left - 14, top + _HEAD + row * CELL - 1), letter, FAINT, font)
    for column, letter in enumerate(residues):
        x = left + column * CELL
        pen.text((x + 2, top + _HEAD + size[1] + 1), letter, TEXT, font)
        if letter in AMINO_ACIDS:
            y = top + _HEAD + AMINO_ACIDS.index(letter) * CELL
            pen.ellipse((x + 4, y + 4, x + CELL - 5, y + CELL - 5), (90, 94, 104))
        if (first + column + 1) % 10 == 0 or first + column == 0:
            pen.text((x, top + 2), str(first + column + 1), FAINT, font)


def _colours(scores: NDArray[np.floating[Any]], limit: float) -> NDArray[np.uint8]:
    share = np.clip(scores / limit, -1, 1)[..., None]
    worse, neutral, better = (np.array(colour, np.float64) for colour in (WORSE, NEUTRAL, BETTER))
    mixed = np.where(share < 0, neutral + (worse - neutral) * -share, neutral + (better - neutral) * share)
    return np.rint(mixed).astype(np.uint8)


def _scale(sheet: Image.Image, pen: Any, limit: float, top: int, font: Any) -> None:
    length = 180
    ramp = _colours(np.linspace(-limit, limit, length)[None], limit)
    sheet.paste(Image.fromarray(np.repeat(ramp, 10, axis=0)), (MARGIN, top))
    for share, text in ((0.0, f"{-limit:.1f}"), (0.5, "0, as the wild type"), (1.0, f"+{limit:.1f}")):
        pen.text((MARGIN + share * length, top + 12), text, FAINT, font, anchor="mt" if 0 < share < 1 else "lt")
