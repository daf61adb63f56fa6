"""Which patches of a slide are looked at: a grid over each piece of tissue, by CLAM's rules."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import UsageError
from omlab.inference.polygons import locate
from omlab.inference.tissue import Tissue


class Inside(StrEnum):
    """When a patch belongs to a piece of tissue."""

    #: Any of four points around its centre lies in it.
    FOUR_PT = "four_pt"
    #: All of them do.
    FOUR_PT_HARD = "four_pt_hard"
    #: Its centre does.
    CENTER = "center"
    #: Its upper left corner does.
    BASIC = "basic"


@attrs.frozen(kw_only=True)
class GridRules:
    """How patches are laid out.

    Attributes
    ----------
    patch, step : side of a patch, and distance from one to the next, in pixels of the level that is read.
    inside : when a patch belongs to the tissue.
    shift : the four points lie so far from the centre, as a share of half a patch.
    padding : patches may reach over the border of the slide.
    region : only patches whose corner lies in (left, top, right, bottom), level-0 pixels.
    single : keep a piece of tissue that has room for one patch only.
    """

    patch: int = 256
    step: int = 256
    inside: Inside = attrs.field(default=Inside.FOUR_PT, converter=Inside)
    shift: float = 0.5
    padding: bool = True
    region: tuple[int, int, int, int] | None = None
    single: bool = True

    def __attrs_post_init__(self) -> None:
        if self.patch < 1 or self.step < 1:
            raise UsageError(
                f"patches have a side of {self.patch} and a step of {self.step} pixels, at least 1 is needed"
            )


def grid(
    tissue: Tissue, size: tuple[int, int], rules: GridRules, scale: tuple[float, float] = (1, 1)
) -> NDArray[np.int64]:
    """Upper left corners of patches [n, 2], level-0 pixels (x, y): contour by contour, columns outside, rows inside.

    Parameters
    ----------
    size : (width, height) of the slide at level 0.
    scale : level-0 pixels of a pixel of the level that is read, (x, y).
    """
    found = [np.zeros((0, 2), np.int64)]
    for contour, holes in zip(tissue.contours, tissue.holes, strict=True):
        places = _of_contour(contour, holes, size, rules, scale)
        if len(places) > (0 if rules.single else 1):
            found.append(places)
    return np.concatenate(found)


def reference_size(patch: int, scale: tuple[float, float]) -> tuple[int, int]:
    """Side of a patch in level-0 pixels, (x, y)."""
    return int(patch * scale[0]), int(patch * scale[1])


def _of_contour(
    contour: NDArray[np.int32],
    holes: tuple[NDArray[np.int32], ...],
    size: tuple[int, int],
    rules: GridRules,
    scale: tuple[float, float],
) -> NDArray[np.int64]:
    width, height = reference_size(rules.patch, scale)
    start = contour.min(axis=0).astype(np.int64)
    stop = contour.max(axis=0).astype(np.int64) + 1
    if not rules.padding:
        stop = np.minimum(stop, [size[0] - width + 1, size[1] - height + 1])
    if rules.region is not None:
        start = np.maximum(start, rules.region[:2])
        stop = np.minimum(stop, rules.region[2:])
    step = reference_size(rules.step, scale)
    columns, rows = (np.arange(start[a], stop[a], max(1, step[a]), dtype=np.int64) for a in (0, 1))
    corners = np.stack(np.meshgrid(columns, rows, indexing="ij"), axis=-1).reshape(-1, 2)
    if not len(corners):
        return corners
    # A contour may be small against the box around it: patches are tried a column at a time in any case.
    corners = corners[_belongs(contour, corners, (width, height), rules)]
    if holes:
        # Doubled, so that the middle of a patch of odd side is a whole number.
        middles = 2 * corners + np.array([width, height])
        in_hole = np.zeros(len(corners), bool)
        for hole in holes:
            in_hole |= locate(2 * hole.astype(np.int64), middles) > 0
        corners = corners[~in_hole]
    return corners


def _belongs(
    contour: NDArray[np.int32], corners: NDArray[np.int64], side: tuple[int, int], rules: GridRules
) -> NDArray[np.bool_]:
    if rules.inside is Inside.BASIC:
        return locate(contour, corners) >= 0
    # Published rules measure the shift along x alone.
    half = side[0] // 2
    centres = corners + half
    shift = int(half * rules.shift)
    if rules.inside is Inside.CENTER or shift <= 0:
        return locate(contour, centres) >= 0
    points = [centres + np.array(way) * shift for way in ((-1, -1), (1, 1), (1, -1), (-1, 1))]
    hits: list[NDArray[Any]] = [locate(contour, p) >= 0 for p in points]
    combine = np.logical_and if rules.inside is Inside.FOUR_PT_HARD else np.logical_or
    return combine.reduce(hits)  # type: ignore[no-any-return]
