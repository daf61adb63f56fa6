"""The picture of a slide: a thumbnail with the outlines of the tissue and the grid of patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from omlab.cases.slide import Slide
from omlab.inference.tissue import Tissue
from omlab.results.picture import BACKGROUND, FAINT, MARGIN, TEXT, _font, _title

SIDE = 1100
OUTLINE, HOLE, PATCH = (0, 158, 115), (0, 114, 178), (213, 94, 0)
#: Squares that are smaller than so many pixels of the picture are tinted and not outlined.
_LEAST = 5


def draw(
    slide: Slide, tissue: Tissue, coords: NDArray[np.int64], side: tuple[int, int], title: str, caption: str = ""
) -> Pillow.Image:
    """Outlines in green, holes in blue, patches in orange; with a scale bar where the scale is known.

    Parameters
    ----------
    side : of a patch in level-0 pixels, (x, y).
    caption : the line below the picture; counts without one.
    """
    thumb = Pillow.fromarray(slide.thumbnail(SIDE)).convert("RGB")
    factor = thumb.width / slide.size[0], thumb.height / slide.size[1]
    _patches(thumb, coords, side, factor)
    pen = ImageDraw.Draw(thumb)
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        for ring, colour in ((contour, OUTLINE), *((hole, HOLE) for hole in holes)):
            places = [tuple(p) for p in (ring * np.asarray(factor)).tolist()]
            pen.line([*places, places[0]], fill=colour, width=2)
    return framed(thumb, slide, title, caption or f"{len(coords)} patches on {_pieces(len(tissue.contours))}")


def framed(thumb: Pillow.Image, slide: Slide, title: str, caption: str) -> Pillow.Image:
    """A picture of a whole slide with title, caption and scale bar."""
    width = max(thumb.width, 420) + 2 * MARGIN
    sheet = Pillow.new("RGB", (width, 78 + thumb.height + 40 + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _title(pen, title, slide.name)
    sheet.paste(thumb, (MARGIN, 78))
    below = 78 + thumb.height + 12
    pen.text((MARGIN, below), caption, fill=FAINT, font=_font(15))
    if slide.mpp is not None:
        _scale_bar(pen, (width - MARGIN, below), thumb.width / (slide.size[0] * slide.mpp[0]), thumb.width)
    return sheet


def _patches(
    thumb: Pillow.Image, coords: NDArray[np.int64], side: tuple[int, int], factor: tuple[float, float]
) -> None:
    small = min(side[0] * factor[0], side[1] * factor[1]) < _LEAST
    layer = Pillow.new("L", thumb.size, 0)
    pen = ImageDraw.Draw(layer)
    corners = coords * np.asarray(factor)
    ends = (coords + np.asarray(side)) * np.asarray(factor)
    for (x0, y0), (x1, y1) in zip(corners.tolist(), ends.tolist(), strict=True):
        box = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        if small:
            pen.rectangle(box, fill=90)
        else:
            pen.rectangle(box, outline=200)
    thumb.paste(Pillow.new("RGB", thumb.size, PATCH), (0, 0), layer)


def _scale_bar(pen: ImageDraw.ImageDraw, end: tuple[int, int], pixels_um: float, width: int) -> None:
    """A bar of a round length, at most a quarter of the picture."""
    steps = [n * 10**e for e in range(5, -1, -1) for n in (5, 2, 1)]
    length = next((um for um in steps if um * pixels_um <= width / 4), 1)
    right, top = end
    left = right - length * pixels_um
    pen.line((left, top + 8, right, top + 8), fill=TEXT, width=3)
    for x in (left, right):
        pen.line((x, top + 3, x, top + 13), fill=TEXT, width=2)
    shown = f"{length // 1000} mm" if length >= 1000 else f"{length} um"
    pen.text((left - 8, top + 8), shown, fill=TEXT, font=_font(15), anchor="rm")


def _pieces(count: int) -> str:
    return f"{count} {'piece' if count == 1 else 'pieces'} of tissue"
