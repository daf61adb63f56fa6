"""Where the windows of a volume lie and how much each of their voxels counts, by the rules of nnU-Net 1.7.1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import ceil

import numpy as np
from numpy.typing import NDArray

#: Standard deviation of the Gaussian as a share of the patch.
SIGMA = 1 / 8


def window_starts(image: Sequence[int], patch: Sequence[int], step: float = 0.5) -> tuple[tuple[int, ...], ...]:
    """First voxel of the windows, one tuple an axis: at most ``step`` patches apart, evenly, the last at the far edge.

    Raises
    ------
    ValueError
        The step is not above 0 and at most 1, or the image is smaller than the patch along an axis.
    """
    if not 0 < step <= 1:
        raise ValueError(f"the step is above 0 and at most 1 patch, found {step}")
    found = []
    for n, p in zip(image, patch, strict=True):
        if n < p:
            raise ValueError(f"the image {tuple(image)} is smaller than the patch {tuple(patch)}: pad it first")
        count = ceil((n - p) / (p * step)) + 1
        found.append(tuple(int(np.round(i * ((n - p) / (count - 1)))) for i in range(count)) if count > 1 else (0,))
    return tuple(found)


def gaussian(patch: Sequence[int], sigma: float = SIGMA) -> NDArray[np.float32]:
    """Importance of each voxel of a window, float32 of shape ``patch``, 1 in the middle, nowhere 0.

    Equals ``scipy.ndimage.gaussian_filter`` of a single 1 at ``patch // 2``, cut off at four standard deviations.
    """
    lines = gaussian_lines(patch, sigma)
    found = lines[0][:, None, None] * lines[1][None, :, None] * lines[2][None, None, :]
    found = (found / found.max()).astype(np.float32)
    found[found == 0] = found[found > 0].min()
    return found


def gaussian_lines(patch: Sequence[int], sigma: float = SIGMA) -> tuple[NDArray[np.float64], ...]:
    """The importance along each axis, one array [patch] an axis: :func:`gaussian` is their product, up to a factor.
    A standard deviation of an eighth reaches every voxel, so none of them is 0."""
    lines = []
    for n in patch:
        wide = n * sigma
        away = np.abs(np.arange(n) - n // 2)
        reach = np.arange(-int(4 * wide + 0.5), int(4 * wide + 0.5) + 1)
        line = np.exp(-0.5 / (wide * wide) * away**2) / np.exp(-0.5 / (wide * wide) * reach**2).sum()
        lines.append(np.where(away <= reach[-1], line, 0))
    return tuple(lines)


def padding(
    shape: Sequence[int], least: Sequence[int], divisible_by: Sequence[int] | None = None
) -> tuple[tuple[int, int], ...]:
    """(before, after) an axis that brings ``shape`` to at least ``least``, rounded up to multiples if asked; half of
    it, rounded down, goes before."""
    wanted = [max(n, m) for n, m in zip(shape, least, strict=True)]
    if divisible_by is not None:
        wanted = [-(-n // d) * d for n, d in zip(wanted, divisible_by, strict=True)]
    return tuple(((w - n) // 2, (w - n) - (w - n) // 2) for w, n in zip(wanted, shape, strict=True))


def mirrorings(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Every combination of ``axes`` (0..2), none first; those with the last axis vary fastest, as upstream has it."""
    every = [tuple(c) for n in range(len(axes) + 1) for c in combinations(sorted(axes), n)]
    return tuple(sorted(every, key=lambda c: sum(4 >> axis for axis in c)))
