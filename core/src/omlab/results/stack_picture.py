"""The picture of a stack: what is brightest along z, alone and with what was found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from omlab.results.picture import BACKGROUND, FAINT, GAP, MARGIN, _font, _title
from omlab.results.slide_picture import _scale_bar

#: Longer side of a panel, at most and at least.
SIDE, LEAST = 900, 420


class Projection:
    """Greatest value along z, made plane by plane and smaller than a picture needs, in whatever size the planes are.

    Parameters
    ----------
    size : (rows, columns) of the planes.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.factor = max(1, -(-max(size) // SIDE))
        self.size = size
        self.values: NDArray[np.float32] | None = None

    def add(self, plane: NDArray[np.generic]) -> None:
        """Take another plane [y, x]."""
        f = self.factor
        rows, columns = np.arange(0, self.size[0], f), np.arange(0, self.size[1], f)
        small = plane if f == 1 else np.maximum.reduceat(np.maximum.reduceat(plane, rows, axis=0), columns, axis=1)
        small = small.astype(np.float32)
        self.values = small if self.values is None else np.maximum(self.values, small)


def draw(
    grey: Projection, found: Projection, *, title: str, name: str, colour: tuple[int, int, int], caption: str,
    um: float | None = None,
) -> Pillow.Image:  # fmt: skip
    """Two panels: the stack as it is, and with what was found in ``colour``; with a scale bar where the scale is known.

    Parameters
    ----------
    um : micrometres of a voxel within a plane.
    """
    assert grey.values is not None
    assert found.values is not None
    low, high = (float(v) for v in np.percentile(grey.values, [1.0, 99.7]))
    shade = np.clip((grey.values - low) / (high - low if high > low else 1.0), 0, 1)
    plain = np.repeat((255 * shade)[:, :, None], 3, axis=2)
    weight = np.clip(found.values / max(1.0, float(found.values.max())), 0, 1)[:, :, None] * 0.85
    marked = 0.55 * plain * (1 - weight) + weight * np.array(colour, np.float32)
    scale = max(1.0, LEAST / max(shade.shape))
    size = max(1, round(shade.shape[1] * scale)), max(1, round(shade.shape[0] * scale))
    panels = [Pillow.fromarray(p.astype(np.uint8)).resize(size, Pillow.Resampling.BILINEAR) for p in (plain, marked)]
    width = max(2 * size[0] + GAP, 520) + 2 * MARGIN
    sheet = Pillow.new("RGB", (width, 78 + size[1] + 66 + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _title(pen, title, name)
    for number, panel in enumerate(panels):
        sheet.paste(panel, (MARGIN + number * (size[0] + GAP), 78))
    below = 78 + size[1] + 12
    pen.text((MARGIN, below), caption, fill=FAINT, font=_font(15))
    if um is not None:
        _scale_bar(pen, (width - MARGIN, below + 26), scale / (um * grey.factor), size[0])
    return sheet
