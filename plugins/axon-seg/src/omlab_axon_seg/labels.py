"""From a thresholded cube to the label that networks are trained on, and lengths of what is thin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from omlab.errors import require

Mask = NDArray[np.bool_]
#: Components of fewer voxels are dirt.
LEAST_VOXELS = 10


def fine_label(rough: NDArray[np.generic], least: int = LEAST_VOXELS) -> Mask:
    """The label of training: centre lines of a rough (thresholded) label, one voxel wider on each side.

    Parameters
    ----------
    rough : [z, y, x]; what is not 0 is axon.
    least : components (of 26 neighbours) with fewer voxels are left out.
    """
    return dilated(skeleton(without_small(np.asarray(rough) > 0, least)))


def without_small(mask: Mask, least: int = LEAST_VOXELS) -> Mask:
    """A mask [z, y, x] without components of fewer than ``least`` voxels, 26 neighbours."""
    cc3d = require("cc3d", needed_for="components of a label", install="omlab-axon-seg[prepare]")
    pieces = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    kept = np.bincount(pieces.ravel()) >= least
    kept[0] = False
    return kept[pieces]  # type: ignore[no-any-return]


def skeleton(mask: Mask) -> Mask:
    """Centre lines, one voxel wide (Lee et al. 1994)."""
    from skimage.morphology import skeletonize

    if not mask.any():
        return np.zeros(mask.shape, bool)
    if mask.shape[0] == 1:  # a single plane would be taken for a solid border
        return np.asarray(skeletonize(mask[0]), bool)[None]
    return np.asarray(skeletonize(np.ascontiguousarray(mask), method="lee"), bool)


def dilated(mask: Mask) -> Mask:
    """Grown by one voxel along each axis: a cross of six neighbours."""
    grown = mask.copy()
    for axis in range(mask.ndim):
        ahead, behind = ([slice(None)] * mask.ndim for _ in range(2))
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        grown[tuple(ahead)] |= mask[tuple(behind)]
        grown[tuple(behind)] |= mask[tuple(ahead)]
    return grown


def line_length(lines: Mask, spacing: Sequence[float] = (1, 1, 1)) -> float:
    """Length of one-voxel-wide lines [z, y, x] with voxels of ``spacing`` (z, y, x), in its unit."""
    after = [*lines[1:], np.zeros_like(lines[0])]
    return float(sum(step_lengths(*pair, spacing).sum() for pair in zip(lines, after, strict=True)))


def step_lengths(plane: Mask, following: Mask, spacing: Sequence[float] = (1, 1, 1)) -> NDArray[np.float32]:
    """Length of the steps to neighbours that begin at each voxel of a plane [y, x]; no step begins at two voxels.

    A step is the distance of two voxels of a line that touch. One along a diagonal does not count where shorter steps
    go the same way already.

    Parameters
    ----------
    following : the next plane.
    """
    both = np.stack([plane, following])
    found = np.zeros(plane.shape, np.float32)
    if not plane.any():
        return found
    for step in _STEPS:
        joined = _at(both, (0, 0, 0), step)[0] & _at(both, step, step)[0]
        axes = [axis for axis in range(3) if step[axis]]
        for choice in product((False, True), repeat=len(axes)):
            if 0 < sum(choice) < len(axes) and joined.any():
                taken = dict(zip(axes, choice, strict=True))
                between = tuple(step[axis] if taken.get(axis) else 0 for axis in range(3))
                joined &= ~_at(both, between, step)[0]
        place = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step[1:], plane.shape, strict=True))
        found[place] += joined * np.float32(np.sqrt(sum((s * d) ** 2 for s, d in zip(step, spacing, strict=True))))
    return found


#: One of each pair of opposite directions to the 26 neighbours; none goes to the plane before.
_STEPS = [step for step in product((0, 1, -1), repeat=3) if step > (0, 0, 0)]


def _at(lines: Mask, offset: Sequence[int], step: Sequence[int]) -> Mask:
    """The mask seen from ``offset``, over all places from which ``step`` stays within."""
    return lines[
        tuple(slice(max(0, -s) + o, n - max(0, s) + o) for o, s, n in zip(offset, step, lines.shape, strict=True))
    ]
