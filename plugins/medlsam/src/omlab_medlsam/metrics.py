"""Measures of localisation and segmentation as MedLSAM reports them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: What two boxes apart share, in voxels; and what keeps a Dice defined.
APART, TINY = 1e-8, 1e-4


def box_iou(a: ArrayLike, b: ArrayLike) -> float:
    """Shared volume over joint volume of boxes (z0, y0, x0, z1, y1, x1); lengths are differences."""
    one, other = np.asarray(a, np.float64).reshape(2, 3), np.asarray(b, np.float64).reshape(2, 3)
    sides = np.minimum(one[1], other[1]) - np.maximum(one[0], other[0])
    shared = float(np.prod(sides)) if (sides > 0).all() else APART
    joint = float(np.prod(one[1] - one[0]) + np.prod(other[1] - other[0])) - shared
    return shared / joint


def wall_distance(a: ArrayLike, b: ArrayLike, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Millimetres between the walls of boxes [2, 3], the mean of both corners along each axis, [3]."""
    gaps = np.abs(np.asarray(a, np.float64).reshape(2, 3) - np.asarray(b, np.float64).reshape(2, 3))
    return gaps.mean(axis=0) * np.asarray(spacing, np.float64)


def dice(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Dice of two masks; 0 where both are empty."""
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b) + TINY))


def hd95(a: NDArray[Any], b: NDArray[Any], spacing: Sequence[float]) -> float:
    """95th percentile of the distances of both surfaces together, mm.

    Raises
    ------
    ValueError
        A mask is empty.
    """
    from scipy import ndimage

    if not a.any() or not b.any():
        raise ValueError("an empty mask has no surface")
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    away = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    both = np.concatenate([away[1][surfaces[0]], away[0][surfaces[1]]])
    return float(np.percentile(both, 95))
