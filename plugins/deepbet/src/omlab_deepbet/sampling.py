"""Resampling and normalisation of deepbet, in NumPy and equal to its torch calls.

Nearest-exact resampling only repeats or drops voxels. So intensities are clipped and normalised on the small side of an
upsampling, with statistics weighted by how often each voxel is repeated, and masks are thresholded before they are
brought to another size: the same values for a fraction of the memory traffic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Mean and standard deviation that the networks were trained for.
MEAN, STD = 0.449, 0.226
Indices = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


def nearest_exact(size: int, target: int) -> NDArray[np.intp]:
    """Source index of each of ``target`` samples along an axis of ``size``: floor((t + 1/2) size / target), in float32
    like torch's ``nearest-exact``."""
    scale = np.float32(size) / np.float32(target)
    found = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.intp)
    return np.minimum(found, size - 1)


def indices(shape: tuple[int, ...], target: tuple[int, ...]) -> Indices:
    """Per axis, for resampling ``shape`` to ``target``."""
    i, j, k = (nearest_exact(s, t) for s, t in zip(shape, target, strict=True))
    return i, j, k


def gather(array: NDArray[Any], at: Indices) -> NDArray[Any]:
    """``array[i][:, j][:, :, k]`` as one C-ordered array. The axis that is nearest in memory goes first, while the
    array is small; the others are copies of whole rows."""
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    found = array.transpose(order)
    for axis in (2, 1, 0):
        found = found.take(at[order[axis]], axis=axis)
    return np.ascontiguousarray(found.transpose(np.argsort(order)))


def above(blocks: NDArray[np.float32], threshold: float, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a probability exceeds ``threshold``, resampled to ``shape``.

    Parameters
    ----------
    blocks : [1, i/2, j/2, k/4, 16], blocks of 2 x 2 x 4 voxels in C order, as the networks give them.
    """
    brain = blocks[0] > np.float32(threshold)
    i, j, k, _ = brain.shape
    at_i, at_j, at_k = indices((2 * i, 2 * j, 4 * k), shape)
    # The 16 bytes of a block are two of i, each two of j, each four of k: taken as ever smaller machine words, so that
    # each axis is resampled without putting the blocks in order first.
    words = brain.view(np.uint64)  # [i, j, k, 2]
    words = words[at_i // 2, :, :, at_i % 2].view(np.uint32).reshape(-1, j, k, 2)
    words = words.transpose(1, 0, 2, 3)[at_j // 2, :, :, at_j % 2]  # [target j, target i, k]
    rows = words.view(np.bool_).reshape(len(at_j), len(at_i), 4 * k)
    return rows.take(at_k, axis=2).transpose(1, 0, 2)


def quantile(values: NDArray[np.float32], q: float) -> np.float32:
    """Quantile with linear interpolation. The rank is a float32 as in torch.quantile: past two million values its
    fraction is coarse, and a finer one would give another number."""
    flat = values.ravel()
    rank = np.float32(q) * np.float32(flat.size - 1)
    below = int(np.floor(rank))
    above = min(below + 1, flat.size - 1)
    part = np.partition(flat, (below, above))
    weight = np.float32(rank - np.float32(below))
    low, high = part[below], part[above]
    if weight < 0.5:
        return np.float32(low + weight * (high - low))
    return np.float32(high - (high - low) * (np.float32(1) - weight))


def normalised(values: NDArray[Any], low: np.float32, high: np.float32, at: Indices) -> NDArray[np.float32]:
    """Clip ``values`` to low..high, scale to 0..1, and to :data:`MEAN` and :data:`STD` as they will be after
    :func:`gather` with ``at``; then gather. Returns float32 of the gathered shape."""
    scaled = values.astype(np.float32, order="C")  # turned while it is small: scans are F-ordered in their files
    scaled -= low
    scaled /= high - low
    np.clip(scaled, 0, 1, out=scaled)
    repeats = [np.bincount(index, minlength=n).astype(np.float64) for index, n in zip(at, values.shape, strict=True)]
    count = float(np.prod([len(index) for index in at], dtype=np.float64))
    mean = _weighted_sum(scaled, repeats) / count
    scaled -= np.float32(mean)
    # Unbiased, as torch's std; the mean that float32 could not hold is taken out once more.
    rest = _weighted_sum(scaled, repeats) / count
    variance = (_weighted_sum(np.square(scaled), repeats) - count * rest**2) / (count - 1)
    scaled *= np.float32(STD / np.sqrt(variance)) if variance > 0 else np.float32(0)
    scaled += np.float32(MEAN)
    return gather(scaled, at)


def _weighted_sum(values: NDArray[np.float32], weights: list[NDArray[np.float64]]) -> float:
    """Sum of values times the weights of their three indices, in float64 from the first reduction on."""
    i, j, k = weights
    rows = np.einsum("ijk,k->ij", values, k, dtype=np.float64)
    return float(i @ rows @ j)
