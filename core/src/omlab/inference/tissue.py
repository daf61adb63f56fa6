"""Where the tissue of a slide is: outlines by saturation, with their holes.

The rules are those of the CLAM pipeline (Lu et al., Nature Biomedical Engineering 2021, arXiv 2004.09666), which most
tools of the field share, so that patches are the same as elsewhere. OpenCV does the arithmetic, as it does there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, UsageError, require

if TYPE_CHECKING:
    from omlab.cases.slide import Slide

    Contour = NDArray[np.int32]

#: Areas of a filter are in patches of this side at level 0.
REFERENCE = 512
#: The level that is looked at is the coarsest with at most this downsample.
DOWNSAMPLE = 64.0


@attrs.frozen(kw_only=True)
class TissueRules:
    """How tissue is told from glass.

    Attributes
    ----------
    level : level that is looked at; -1 takes the best one for a downsample of 64.
    saturation : greater saturation (0..255) is tissue.
    median : side of the median filter before the threshold, odd.
    closing : side of the square that closes gaps; 0 for none.
    otsu : threshold by Otsu in place of ``saturation``.
    least_tissue, least_hole : areas in patches of 512 x 512 pixels at level 0; what is not larger is left out.
    most_holes : at most so many holes of each contour, the largest.
    keep, leave_out : contours by number; all without ``keep``.
    """

    level: int = -1
    saturation: int = 8
    median: int = 7
    closing: int = 4
    otsu: bool = False
    least_tissue: float = 100
    least_hole: float = 16
    most_holes: int = 8
    keep: tuple[int, ...] = attrs.field(default=(), converter=tuple)
    leave_out: tuple[int, ...] = attrs.field(default=(), converter=tuple)

    def __attrs_post_init__(self) -> None:
        if self.median < 1 or self.median % 2 == 0:
            raise UsageError(f"the median filter of the tissue has the side {self.median}, an odd number was expected")


#: Published settings by name.
PRESETS: dict[str, TissueRules] = {
    "standard": TissueRules(),
    "tcga": TissueRules(least_tissue=16, least_hole=4),
    "bwh_biopsy": TissueRules(saturation=15, median=11, closing=2, least_tissue=1, least_hole=1, most_holes=2),
    "bwh_resection": TissueRules(saturation=15, median=11, closing=4),
    "heatmap": TissueRules(saturation=15, median=11, closing=2, least_tissue=50, least_hole=8, most_holes=10),
}


@attrs.frozen(eq=False, kw_only=True)
class Tissue:
    """Outlines in level-0 pixels (x, y).

    Attributes
    ----------
    contours : every boundary pixel of each piece of tissue, int32 [n, 2].
    holes : of each contour, the holes in it, int32 [n, 2] each.
    """

    contours: tuple[Contour, ...] = attrs.field(converter=tuple)
    holes: tuple[tuple[Contour, ...], ...] = attrs.field(converter=tuple)

    def scaled(self, scale: tuple[float, float]) -> Tissue:
        """Outlines multiplied by (x, y) and cut to whole pixels."""
        return Tissue(
            contours=[_scaled(c, scale) for c in self.contours],
            holes=[tuple(_scaled(h, scale) for h in holes) for holes in self.holes],
        )


def segment(slide: Slide, rules: TissueRules | None = None) -> Tissue:
    """Outlines of the tissue of a slide.

    Raises
    ------
    omlab.errors.InputError
        Nothing on the slide is tissue by these rules.
    """
    rules = rules or TissueRules()
    rgb, downsample = slide.overview(level=rules.level, downsample=DOWNSAMPLE)
    found = outline(rgb, downsample, rules)
    if not found.contours:
        raise InputError(
            f"{slide.name}: no tissue was found on it",
            remedy="If there is some, choose other rules with --tissue (bwh_biopsy takes small pieces)",
        )
    return found


def outline(rgb: NDArray[np.uint8], downsample: tuple[float, float], rules: TissueRules) -> Tissue:
    """Outlines in a picture [row, column, 3] of a whole slide.

    Parameters
    ----------
    downsample : level-0 pixels of a pixel of the picture, (x, y).
    """
    cv2 = opencv()
    binary = _binary(cv2, rgb, rules)
    contours, hierarchy = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return Tissue(contours=(), holes=())
    parents = hierarchy.reshape(-1, hierarchy.shape[-1])[:, 3]
    # The unit is cut to a whole number of pixels of the picture, as published.
    unit = int(REFERENCE**2 / (downsample[0] * downsample[1]))
    areas = [float(cv2.contourArea(contour)) for contour in contours]
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(parents.tolist()):
        children.setdefault(parent, []).append(index)
    kept, holes = [], []
    for index in children.get(-1, []):
        inner = children.get(index, [])
        area = areas[index] - sum(areas[hole] for hole in inner)
        if area == 0 or not area > rules.least_tissue * unit:
            continue
        largest = sorted(inner, key=lambda hole: areas[hole], reverse=True)[: rules.most_holes]
        kept.append(_scaled(contours[index].reshape(-1, 2), downsample))
        holes.append(
            tuple(
                _scaled(contours[hole].reshape(-1, 2), downsample)
                for hole in largest
                if areas[hole] > rules.least_hole * unit
            )
        )
    chosen = sorted(set(rules.keep or range(len(kept))) - set(rules.leave_out))
    return Tissue(
        contours=[kept[i] for i in chosen if 0 <= i < len(kept)],
        holes=[holes[i] for i in chosen if 0 <= i < len(kept)],
    )


def mask(
    tissue: Tissue,
    size: tuple[int, int],
    downsample: tuple[float, float],
    *,
    offset: tuple[float, float] = (0, 0),
    holes: bool = True,
) -> NDArray[np.bool_]:
    """[row, column] mask of the tissue at a level.

    Parameters
    ----------
    size : (width, height) of the mask.
    downsample : of the level, (x, y).
    offset : level-0 place (x, y) of the mask's upper left corner.
    holes : cut them out.
    """
    cv2 = opencv()
    scale = (1 / downsample[0], 1 / downsample[1])
    small = tissue.scaled(scale)
    shift = (-int(offset[0] * scale[0]), -int(offset[1] * scale[1]))
    canvas = np.zeros((size[1], size[0]), np.uint8)
    # A piece that lies within a hole of another is drawn after it.
    order = sorted(range(len(small.contours)), key=lambda i: cv2.contourArea(small.contours[i]), reverse=True)
    for index in order:
        cv2.drawContours(canvas, [small.contours[index]], -1, 1, offset=shift, thickness=-1)
        if holes and small.holes[index]:
            cv2.drawContours(canvas, list(small.holes[index]), -1, 0, offset=shift, thickness=-1)
    return canvas.astype(bool)


def opencv() -> Any:
    """OpenCV, or which command installs it."""
    return require("cv2", needed_for="finding the tissue of a slide", install="omlab[slides]")


def _binary(cv2: Any, rgb: NDArray[np.uint8], rules: TissueRules) -> NDArray[np.uint8]:
    saturation = np.ascontiguousarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2HSV)[:, :, 1])
    smooth = cv2.medianBlur(saturation, rules.median)
    threshold, how = (0, cv2.THRESH_OTSU) if rules.otsu else (rules.saturation, 0)
    _, binary = cv2.threshold(smooth, threshold, 255, how + cv2.THRESH_BINARY)
    if rules.closing > 0:
        square = np.ones((rules.closing, rules.closing), np.uint8)
        binary = cv2.morphologyEx(binary, cv2.MORPH_CLOSE, square)
    return binary  # type: ignore[no-any-return]


def _scaled(contour: NDArray[Any], scale: tuple[float, float]) -> NDArray[np.int32]:
    return (contour.reshape(-1, 2) * np.asarray(scale, np.float64)).astype(np.int32)
