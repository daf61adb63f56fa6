"""Six extreme points of an organ, and of its parts along z.

Places are (z, y, x). The order of six points: least z, least y, least x, greatest z, greatest y, greatest x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Points of one box.
SIX = 6
#: Parts that an organ is cut into at most.
MOST_PARTS = 6
Points = NDArray[np.int16]
Mask = NDArray[np.bool_]


def bounds(mask: NDArray[Any]) -> NDArray[np.int64]:
    """[2, 3] first and last index of the mask along each axis. Raises ValueError for an empty mask."""
    found = []
    for axis in range(mask.ndim):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(there):
            raise ValueError("an empty mask has no bounds")
        found.append((there[0], there[-1]))
    return np.array(found, np.int64).T


def extreme_points(mask: NDArray[Any]) -> Points:
    """[6, 3]: on each of the six outermost planes the middle voxel of the mask, in the order of the plane's voxels."""
    low, high = bounds(mask)
    found = []
    for limits in (low, high):
        for axis in range(3):
            middle = _middle(mask, axis, int(limits[axis]))
            assert middle is not None
            found.append(_point(axis, int(limits[axis]), middle))
    return np.array(found, np.int16)


def part_bounds(mask: NDArray[Any], parts: int) -> NDArray[np.int64]:
    """[parts, 2, 3] bounds of equal parts along z: z as the part is cut, y and x of the mask within it.

    A part without a voxel has y and x of the part before.
    """
    low, high = bounds(mask)
    step = (high[0] - low[0]) // parts
    found: list[NDArray[np.int64]] = []
    for number in range(parts):
        start = low[0] + number * step
        end = high[0] if number == parts - 1 else start + step
        within = mask[start:end]
        if within.any():
            inner = bounds(within)[:, 1:]
        elif found:
            inner = found[-1][:, 1:]
        else:
            inner = np.stack([low, high])[:, 1:]
        found.append(np.concatenate([np.array([[start], [end]]), inner], axis=1))
    return np.stack(found)


def part_points(mask: NDArray[Any], parts: int) -> Points:
    """[6 parts, 3] extreme points of the parts.

    A point lies in the middle of the first plane of the whole mask, from its bound upwards, that has a voxel, and keeps
    its bound. Where there is none, the middle of the point before is taken.
    """
    found = []
    middle = (0, 0)
    for part in part_bounds(mask, parts):
        for limits in part:
            for axis in range(3):
                at = int(limits[axis])
                for plane in range(at, mask.shape[axis]):
                    seen = _middle(mask, axis, plane)
                    if seen is not None:
                        middle = seen
                        break
                found.append(_point(axis, at, middle))
    return np.array(found, np.int16)


def parts_of(masks: Sequence[NDArray[Any]], interval: int) -> int:
    """Parts that one class is cut into; 0, the organ as a whole, where the lowest of its supports is too low."""
    lengths = []
    for mask in masks:
        low, high = bounds(mask)
        lengths.append(int(high[0] - low[0]))
    least = min(lengths)
    return min(least // interval, MOST_PARTS) if least > interval else 0


def support_points(mask: NDArray[Any], parts: int) -> Points:
    """Of a whole organ (0 parts), or of its parts."""
    return part_points(mask, parts) if parts else extreme_points(mask)


def corners(points: NDArray[Any]) -> NDArray[Any]:
    """[..., 6, 3] to the low and the high corner of their box, [..., 2, 3]."""
    axis = np.arange(3)
    return np.stack([points[..., axis, axis], points[..., axis + 3, axis]], axis=-2)


def ordered(points: NDArray[Any]) -> NDArray[Any]:
    """[..., 6, 3] with the two points of an axis exchanged where the first lies beyond the second."""
    found = points.copy()
    for axis in range(3):
        wrong = points[..., axis, axis] > points[..., axis + 3, axis]
        found[..., axis, :] = np.where(wrong[..., None], points[..., axis + 3, :], points[..., axis, :])
        found[..., axis + 3, :] = np.where(wrong[..., None], points[..., axis, :], points[..., axis + 3, :])
    return found


def _middle(mask: NDArray[Any], axis: int, index: int) -> tuple[int, int] | None:
    """The other two coordinates, of axes axis + 1 and axis + 2 (counted round), of the middle voxel of a plane."""
    plane = np.take(mask, index, axis=axis)  # the other axes in ascending order
    if axis == 1:
        plane = plane.T  # counted round, x comes before z
    there = np.flatnonzero(plane)
    if not len(there):
        return None
    first, second = divmod(int(there[len(there) // 2]), plane.shape[1])
    return first, second


def _point(axis: int, bound: int, middle: tuple[int, int]) -> list[int]:
    found = [0, 0, 0]
    found[axis] = bound
    found[(axis + 1) % 3], found[(axis + 2) % 3] = middle
    return found
