"""The arithmetic on voxels around the two networks, in NumPy; equal to what deepbet computes with torch.

Arrays are [i, j, k] in the orientation closest to RAS+.
"""

from __future__ import annotations

import attrs
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

#: Values that bound the intensities: what lies outside is clamped.
LOW_QUANTILE, HIGH_QUANTILE = 0.005, 0.995
#: A plane of the coarse mask belongs to the brain if more than this part of it does.
PLANE_FRACTION = 0.02
#: Added to the box on each side, as a part of its size.
MARGIN = 0.1


def nearest(source: int, target: int) -> NDArray[np.intp]:
    """Index of the source voxel for each of ``target`` voxels: the one whose extent holds the target's centre.

    The same as mode ``nearest-exact`` of torch's ``interpolate``, single precision included.
    """
    scale = np.float32(source) / np.float32(target)
    index = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.intp)
    return np.minimum(index, source - 1)


def finite32(voxels: NDArray[np.generic]) -> Float:
    """A float32 copy; not-a-number becomes 0, infinity the greatest finite number of its sign."""
    with np.errstate(over="ignore"):
        values = voxels.astype(np.float32)
    if voxels.dtype.kind == "f":
        np.nan_to_num(values, copy=False)
    return values


def resized(voxels: NDArray[np.generic], shape: tuple[int, int, int]) -> Float:
    """Nearest voxels on a grid of ``shape`` over the same extent, finite float32."""
    for axis, size in enumerate(shape):
        voxels = voxels.take(nearest(voxels.shape[axis], size), axis=axis)
    return finite32(voxels)


def quantile(values: Float, fraction: float) -> np.float32:
    """Linear interpolation between order statistics, in single precision as ``torch.quantile`` does it."""
    rank = np.float32(fraction) * np.float32(values.size - 1)
    below, above = int(np.floor(rank)), int(np.ceil(rank))
    ordered = np.partition(values.ravel(), (below, above))
    low, high = ordered[below], ordered[above]
    weight = rank - np.float32(below)
    if weight < 0.5:
        return np.float32(low + weight * (high - low))
    return np.float32(high - (high - low) * (np.float32(1) - weight))


@attrs.frozen
class Intensities:
    """How intensities are normalised: clamped to a range, then to a fixed mean and deviation."""

    low: np.float32
    high: np.float32

    @classmethod
    def of(cls, voxels: Float) -> Intensities:
        """The range of a volume, without its extremes."""
        return cls(quantile(voxels, LOW_QUANTILE), quantile(voxels, HIGH_QUANTILE))

    @property
    def flat(self) -> bool:
        """Is there no range to speak of?"""
        return not self.high > self.low

    def resized(self, voxels: NDArray[np.generic], shape: tuple[int, int, int]) -> Float:
        """Nearest voxels on a grid of ``shape``, normalised over that grid: mean 0.449, deviation 0.226.

        A voxel that is taken n times is computed once and counts n times.
        """
        counts = []
        places = []
        for axis, size in enumerate(shape):
            used, place, count = np.unique(nearest(voxels.shape[axis], size), return_inverse=True, return_counts=True)
            if len(used) != voxels.shape[axis]:
                voxels = voxels.take(used, axis=axis)
            places.append(place)
            counts.append(count.astype(np.float64))
        values = finite32(voxels)
        with np.errstate(over="ignore"):  # of what was infinite, clamped in the next line
            values -= self.low
            values /= self.high - self.low
        np.clip(values, 0, 1, out=values)
        total = squares = 0.0
        for plane, count in zip(values, counts[0], strict=True):
            wide = plane.astype(np.float64)
            total += count * (counts[1] @ wide @ counts[2])
            np.square(wide, out=wide)
            squares += count * (counts[1] @ wide @ counts[2])
        voxel_count = float(np.prod(shape))
        mean = total / voxel_count
        deviation = np.sqrt(max(squares - total * mean, 0.0) / (voxel_count - 1))
        values -= np.float32(mean)
        if deviation > 0:
            values /= np.float32(deviation)
        values *= np.float32(0.226)
        values += np.float32(0.449)
        return values.take(places[2], axis=2).take(places[1], axis=1).take(places[0], axis=0)


def largest_component(mask: Mask) -> Mask:
    """The largest part that hangs together by faces, edges or corners; empty where the mask is."""
    import cc3d

    labels = cc3d.connected_components(mask, connectivity=26)
    sizes = np.bincount(labels.ravel())
    if len(sizes) < 2:
        return np.zeros(mask.shape, dtype=bool)
    return np.asarray(labels == sizes[1:].argmax() + 1)


def filled(mask: Mask) -> Mask:
    """With its cavities: background from which no path through faces leads to the border of the array."""
    import cc3d

    labels = cc3d.connected_components(~mask, connectivity=6)
    outside = np.zeros(int(labels.max()) + 1, dtype=bool)
    for axis in range(3):
        outside[labels.take((0, -1), axis=axis)] = True
    outside[0] = False
    return ~outside[labels]


def grown(mask: Mask, layers: int) -> Mask:
    """With ``layers`` more layers of voxels (through faces); fewer where negative.

    Nothing is lost at the border of the array.
    """
    for _ in range(abs(layers)):
        source = mask if layers > 0 else ~mask
        more = source.copy()
        for axis in range(3):
            ahead = (slice(None),) * axis + (slice(1, None),)
            behind = (slice(None),) * axis + (slice(None, -1),)
            more[ahead] |= source[behind]
            more[behind] |= source[ahead]
        mask = more if layers > 0 else ~more
    return mask


def brain_box(coarse: Mask, shape: tuple[int, ...]) -> Box | None:
    """The box around the brain with its margin, in voxels of a grid of ``shape``; ``None`` where too little is brain.

    Parameters
    ----------
    coarse : mask on a coarser or finer grid of the same extent.
    """
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        planes = np.flatnonzero(coarse.mean(axis=others, dtype=np.float64) > PLANE_FRACTION)
        if not len(planes):
            return None
        first, end = int(planes[0]), int(planes[-1]) + 1
        scale = np.float32(shape[axis]) / np.float32(coarse.shape[axis])
        centre = np.round(scale * np.float32((first + end) / 2))
        size = np.round(np.float32(1 + 2 * np.float32(MARGIN)) * (scale * np.float32(end - first)))
        start, stop = max(0, int(centre - size / 2)), min(shape[axis], int(centre + size / 2))
        if start >= stop:
            return None
        box.append(slice(start, stop))
    return box[0], box[1], box[2]


def above(blocks: Float, threshold: float, shape: tuple[int, ...]) -> Mask:
    """Where the probability exceeds ``threshold``, on a grid of ``shape`` (nearest voxels).

    Parameters
    ----------
    blocks : [1, i/2, j/2, k/4, 16], blocks of 2 x 2 x 4 voxels in C order, as the networks give it.
    """
    brain = (blocks[0] > np.float32(threshold)).view(np.uint8)
    i, j, k, _ = brain.shape
    # The 16 bytes of a block are two of i, in each two of j, in each four of k: each axis is taken as one
    # machine word, so that ever less is moved.
    words = brain.view(np.uint64).reshape(i, j, k, 2)
    at = nearest(2 * i, shape[0])
    rows = words[at // 2, :, :, at % 2].view(np.uint32).reshape(-1, j, k, 2)
    at = nearest(2 * j, shape[1])
    columns = rows.transpose(1, 0, 2, 3)[at // 2, :, :, at % 2].view(np.uint8).reshape(-1, len(rows), 4 * k)
    return columns.take(nearest(4 * k, shape[2]), axis=2).transpose(1, 0, 2).view(bool)
