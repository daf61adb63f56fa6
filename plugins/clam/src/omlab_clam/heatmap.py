"""Scores of patches as colours over the slide, by CLAM's rules (Lu et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.cases import Slide
from omlab.errors import InputError, require
from omlab.inference.tissue import Tissue, mask, opencv

#: The level that is drawn on is the coarsest with at most this downsample.
DOWNSAMPLE = 32.0
#: Side of the blocks in which colours and slide are mixed.
_BLOCK = 1024


def percentiles(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Rank of each score among all in per cent; equal scores share their mean rank."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(scores, "average") / len(scores) * 100, np.float64)


def percentiles_among(scores: NDArray[np.floating[Any]], reference: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Where each score stands among those of ``reference``, in per cent: the mean of "below" and "not above", with half
    a place for a score that is among them."""
    ordered = np.sort(np.asarray(reference, np.float64).ravel())
    below = np.searchsorted(ordered, scores, "left")
    upto = np.searchsorted(ordered, scores, "right")
    return (below + upto + (upto > below)) * 50.0 / len(ordered)


def colours(values: NDArray[np.floating[Any]], name: str) -> NDArray[np.uint8]:
    """[..., RGB] of values in 0..1 by a colour map of matplotlib. Raises :class:`omlab.errors.InputError`."""
    matplotlib = require("matplotlib", needed_for="colours of heat maps", install="omlab-clam")
    try:
        table = matplotlib.colormaps[name]
    except KeyError:
        raise InputError(f"there is no colour map '{name}'", remedy="jet, coolwarm and viridis are some") from None
    return np.asarray(table(values)[..., :3] * 255).astype(np.uint8)


def draw(
    slide: Slide,
    scores: NDArray[np.floating[Any]],
    coords: NDArray[np.integer[Any]],
    side: tuple[int, int],
    *,
    level: int = -1,
    alpha: float = 0.4,
    cmap: str = "jet",
    blank: bool = False,
    tissue: Tissue | None = None,
    holes: bool = True,
    as_percentiles: bool = False,
    binarize: bool = False,
    threshold: float = 0.5,
    blur: bool = False,
    overlap: float = 0.0,
    region: tuple[int, int, int, int] | None = None,
    shrink: float = 1.0,
    max_size: int | None = None,
) -> NDArray[np.uint8]:
    """The heat map [row, column, RGB] at a level.

    Parameters
    ----------
    scores : [patch] in 0..100, or anything with ``as_percentiles``.
    coords, side : upper left corners [patch, 2] and side (x, y) of the patches in level-0 pixels.
    level : that is drawn on; -1 takes the best one for a downsample of 32.
    alpha : share of the colours; the rest is the slide.
    blank : on white in place of the slide.
    tissue, holes : only on this tissue, without its holes.
    binarize, threshold : 1 from the threshold on (in 0..1; below 0 it is one over the number of patches), 0 below.
    blur : smooth colours, by the distance of patches.
    overlap : share of a patch that its neighbour covers, too.
    region : only (left, top, right, bottom), level-0 pixels.
    shrink, max_size : make the picture smaller by a factor, and to a longer side.
    """
    cv2 = opencv()
    level = slide.best_level(DOWNSAMPLE) if level < 0 else level
    if not 0 <= level < len(slide.levels):
        raise InputError(f"{slide.name}: has no level {level}, it has 0 to {len(slide.levels) - 1}")
    down = np.asarray(slide.downsamples[level])
    scale = 1 / down
    values = np.array(scores, np.float64).reshape(-1)
    least = 0.0
    if binarize:
        least = threshold if threshold >= 0 else 1.0 / len(values)
    places = np.asarray(coords, np.int64)
    corner = np.zeros(2, np.int64)
    width, height = slide.levels[level]
    if region is not None:
        corner, end = np.asarray(region[:2]), np.asarray(region[2:])
        inside = ((places >= corner) & (places <= end)).all(axis=1)
        places, values = places[inside] - corner, values[inside]
        width, height = ((end * scale).astype(np.int64) - (corner * scale).astype(np.int64)).tolist()
    patch = np.ceil(np.asarray(side) * scale).astype(np.int64)
    places = np.ceil(places * scale).astype(np.int64)
    if as_percentiles and len(values):
        values = percentiles(values)
    values = values / 100
    kernel = (patch * (1 - overlap)).astype(np.int64) * 2 + 1
    overlay = _overlay(values, places, patch, (height, width), least, binarize)
    if blur:
        overlay = cv2.GaussianBlur(overlay, tuple(kernel.tolist()), 0)
    paper = (
        np.full((height, width, 3), 255, np.uint8) if blank else slide.region(*corner.tolist(), width, height, level)
    )
    shown = None
    if tissue is not None:
        shown = mask(tissue, (width, height), (down[0], down[1]), offset=tuple(corner.tolist()), holes=holes)
    drawn = values >= least
    canvas = _painted(paper, overlay, places[drawn], patch, shown, cmap)
    if blur:
        canvas = cv2.GaussianBlur(canvas, tuple(kernel.tolist()), 0)
    if alpha < 1:
        for top in range(0, height, _BLOCK):
            rows = slice(top, top + _BLOCK)
            canvas[rows] = cv2.addWeighted(canvas[rows], alpha, paper[rows], 1 - alpha, 0)
    return _smaller(canvas, shrink, max_size)


def _painted(
    paper: NDArray[np.uint8], overlay: NDArray[np.float64], places: NDArray[np.int64], patch: NDArray[np.int64],
    shown: NDArray[np.bool_] | None, cmap: str,
) -> NDArray[np.uint8]:  # fmt: skip
    """The paper with the colours of the overlay where there is a patch, and only where it is to be ``shown``."""
    canvas = paper.copy()
    for x, y in places.tolist():
        box = (slice(max(0, y), y + int(patch[1])), slice(max(0, x), x + int(patch[0])))
        painted = colours(overlay[box], cmap)
        if shown is None:
            canvas[box] = painted
        else:
            canvas[box][shown[box]] = painted[shown[box]]
    return canvas


def _overlay(
    values: NDArray[np.float64], places: NDArray[np.int64], patch: NDArray[np.int64], shape: tuple[int, int],
    least: float, binarize: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """Mean score of the patches that cover each pixel."""
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.uint16)
    for value, (x, y) in zip(values.tolist(), places.tolist(), strict=True):
        taken = 0.0 if value < least else 1.0 if binarize else value
        box = (slice(max(0, y), y + int(patch[1])), slice(max(0, x), x + int(patch[0])))
        total[box] += taken
        count[box] += 1
    np.divide(total, count, out=total, where=count > 0)
    return np.around(total) if binarize else total


def _smaller(canvas: NDArray[np.uint8], shrink: float, max_size: int | None) -> NDArray[np.uint8]:
    picture = Pillow.fromarray(canvas)
    if shrink > 1:
        picture = picture.resize((int(picture.width / shrink), int(picture.height / shrink)))
    if max_size is not None and max(picture.size) > max_size:
        factor = max_size / max(picture.size)
        picture = picture.resize((int(picture.width * factor), int(picture.height * factor)))
    return np.asarray(picture)
