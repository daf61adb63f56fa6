"""How upstream draws clicks from a reference mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError

#: Place in voxels, and label.
Click = tuple[tuple[int, int, int], int]
#: Mask so far, reference and source of chance to a click.
Rule = Callable[[NDArray[Any], NDArray[Any], np.random.RandomState], Click]


def _wrong(before: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What was missed, and what is too much."""
    found, wanted = np.asarray(before, bool), np.asarray(truth) > 0
    return wanted & ~found, ~wanted & found


def _drawn(candidates: NDArray[np.bool_], random: np.random.RandomState) -> tuple[int, int, int]:
    places = np.argwhere(candidates)
    x, y, z = places[random.randint(len(places))].tolist()
    return x, y, z


def random_click(before: NDArray[Any], truth: NDArray[Any], random: np.random.RandomState) -> Click:
    """Any voxel where mask and reference differ, with label 1 where something was missed; without a difference any
    voxel of the reference.

    Parameters
    ----------
    before : the mask so far, [x, y, z].
    truth : the reference, [x, y, z], above 0.

    Raises
    ------
    omlab.errors.InputError
        The reference is empty.
    """
    missed, extra = _wrong(before, truth)
    wrong = missed | extra
    if wrong.any():
        place = _drawn(wrong, random)
        return place, int(missed[place])
    if not (np.asarray(truth) > 0).any():
        raise InputError("a click was asked of an empty mask", remedy="Leave empty masks out")
    return _drawn(np.asarray(truth) > 0, random), 1


def ritm_region(before: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[np.bool_], int]:
    """Voxels that a click of the RITM rule may fall on, and its label: of what was missed and what is too much the part
    with the deepest voxel, where it is deeper than half of that. A tie goes to what is too much."""
    from scipy import ndimage

    depths = [
        ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1, 1:-1] if part.any() else np.zeros(part.shape)
        for part in _wrong(before, truth)
    ]
    label = int(depths[0].max() > depths[1].max())
    depth = depths[1 - label]
    return depth > depth.max() / 2, label


def ritm_click(before: NDArray[Any], truth: NDArray[Any], random: np.random.RandomState) -> Click:
    """A voxel deep inside of the largest error; the middle with label 0 where there is none."""
    region, label = ritm_region(before, truth)
    if not region.any():
        x, y, z = (n // 2 for n in region.shape)
        return (x, y, z), 0
    return _drawn(region, random), label
