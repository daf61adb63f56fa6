"""Everything in a picture: ask at every point of a grid, keep what is good, drop what was found twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab_sdk.segment_anything.predictor import BATCH, POSITIVE, Predictor, stability

#: Masks brought to the picture's pixels at a time.
_AT_ONCE = 8


@attrs.frozen(eq=False)
class Found:
    """One thing that was found.

    Attributes
    ----------
    low : [low, low] logits.
    quality : predicted overlap (IoU) with what is there.
    stability : how little the mask changes with its threshold, 0 to 1.
    box : (x0, y0, x1, y1) of the mask in the picture, the last pixels included.
    area : pixels of the mask in the picture.
    """

    low: NDArray[np.float32]
    quality: float
    stability: float
    box: NDArray[np.int64]
    area: int


def everything(
    predictor: Predictor,
    *,
    grid: int = 32,
    level: float = 0.0,
    min_quality: float = 0.88,
    min_stability: float = 0.95,
    overlap: float = 0.7,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Found]:
    """All masks worth keeping, the largest first.

    Parameters
    ----------
    grid : points along each side; all three alternatives of each point are looked at.
    level : logit above which a pixel belongs to a mask.
    min_quality, min_stability : masks with less are dropped.
    overlap : of masks whose boxes overlap (IoU) more than this, the one of the highest quality stays.
    tell : called with points done and points in all.
    """
    found: list[Found] = []
    points = _grid(predictor.frame.shape, grid)
    for start in range(0, len(points), BATCH):
        tell(start, len(points))
        chunk = points[start : start + BATCH]
        masks, qualities = predictor.decode([predictor.query([p], [POSITIVE]) for p in chunk])
        low, good = masks[:, 1:].reshape(-1, *masks.shape[2:]), qualities[:, 1:].ravel()
        kept = good > min_quality
        found += _looked_at(predictor, low[kept], good[kept], level, min_stability)
    tell(len(points), len(points))
    chosen = non_maximum(np.array([f.box for f in found]).reshape(-1, 4), np.array([f.quality for f in found]), overlap)
    return sorted((found[i] for i in chosen), key=lambda one: -one.area)


def _grid(shape: tuple[int, int], count: int) -> NDArray[np.float64]:
    """Centres of ``count`` x ``count`` cells of the picture as (x, y), row by row."""
    share = (np.arange(count) + 0.5) / count
    y, x = np.meshgrid(share * shape[0], share * shape[1], indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _looked_at(
    predictor: Predictor, low: NDArray[np.float32], qualities: NDArray[np.float32], level: float, least: float
) -> Iterator[Found]:
    """Masks at the picture's resolution: stable ones, with their box."""
    for start in range(0, len(low), _AT_ONCE):
        logits = predictor.frame.restore(low[start : start + _AT_ONCE])
        for number, steady in enumerate(stability(logits, level).tolist()):
            mask = logits[number] > level
            if steady < least or not mask.any():
                continue
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
            at = start + number
            yield Found(low[at], float(qualities[at]), steady, box, int(mask.sum()))


def non_maximum(boxes: NDArray[np.int64], scores: NDArray[np.float32], overlap: float) -> list[int]:
    """Indices of boxes that stay, the best first: each drops all worse ones that it overlaps (IoU) by more than
    ``overlap``."""
    order = np.argsort(-scores, kind="stable")
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)
    kept = []
    while len(order):
        best, others = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[others, :2], boxes[best, :2])
        high = np.minimum(boxes[others, 2:], boxes[best, 2:])
        both = np.prod(np.clip(high - low, 0, None), axis=1, dtype=np.float64)
        union = areas[others] + areas[best] - both
        shared = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
        order = others[shared <= overlap]
    return kept
