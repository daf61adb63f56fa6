"""From a scan to cubes of the network's resolution in RAS+ order, and back to the scan's own grid.

Upstream resamples the whole scan, turns it and cuts a cube out. All three act on each axis apart, so here a cube is
made at once by one small matrix an axis: a scan of any size costs no more than the cube.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from omlab.geometry import Geometry, Turn

Begin = tuple[int, int, int]
#: Relative error of a spacing that is computed.
EXACT = 1e-12


def _three(value: Sequence[float]) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in value)
    return a, b, c


@attrs.frozen(eq=False, slots=False)
class Grid:
    """The grid that a scan is resampled to.

    Attributes
    ----------
    source : of the scan.
    spacing : distance between voxels along the axes of the file, in mm.
    turn : from the resampled grid in the axes of the file to RAS+; ``turn.target`` is the grid.
    """

    source: Geometry
    spacing: tuple[float, float, float] = attrs.field(converter=_three)
    turn: Turn

    @classmethod
    def of(cls, source: Geometry, spacing: Sequence[float] = (1.5, 1.5, 1.5)) -> Grid:
        """The first corner of the scan stays where it is, and the last voxel may reach past its end."""
        old, new = np.asarray(source.spacing_mm), np.asarray(spacing, np.float64)
        # The lengths of the columns of an oblique affine are exact but for the last digits, which are no further voxel.
        shape = [
            1 if n == 1 else math.ceil(n * s / t * (1 - EXACT)) for n, s, t in zip(source.shape, old, new, strict=True)
        ]
        affine = source.affine.copy()
        affine[:3, :3] = source.affine[:3, :3] * (new / old)
        affine[:3, 3] = source.affine[:3, :3] @ (0.5 * (new / old - 1)) + source.affine[:3, 3]
        resampled = Geometry((shape[0], shape[1], shape[2]), affine)
        return cls(source, spacing, Turn.to(resampled, "RAS"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the grid."""
        return self.turn.target.shape

    def affine(self, begin: Begin) -> NDArray[np.float64]:
        """4 x 4, voxels of a cube that begins at ``begin`` to RAS+ millimetres."""
        found = self.turn.target.affine.copy()
        found[:3, 3] += found[:3, :3] @ np.asarray(begin, np.float64)
        return found

    def into(self, places: ArrayLike) -> NDArray[np.float64]:
        """Positions on the scan [..., 3] to positions on the grid, voxel centres at whole numbers."""
        at = np.asarray(places, np.float64)[..., list(self.turn.order)]
        found = np.empty_like(at)
        for axis, (source, ratio, length) in enumerate(self._axes()):
            position = (at[..., axis] + 0.5) / ratio - 0.5
            if self.source.shape[source] == 1:
                position = at[..., axis]
            found[..., axis] = length - 1 - position if self.turn.flipped[axis] else position
        return found

    def image(self, voxels: NDArray[np.generic], begin: Begin, size: Sequence[int]) -> NDArray[np.float32]:
        """A cube of the scan, interpolated linearly; 0 outside of it. Integers are cut to integers, since upstream
        keeps the type of a file."""
        index, shares, places = self._empty(), [np.zeros(0)] * 3, self._empty()
        for axis, source in enumerate(self.turn.order):
            at = self._positions(axis, begin[axis], size[axis])
            n = self.source.shape[source]
            inside = np.flatnonzero((at >= -0.5) & (at < n - 0.5))
            low = np.clip(np.floor(at[inside]), 0, n - 1).astype(np.intp)
            index[source] = np.concatenate([low, np.minimum(low + 1, n - 1)])
            shares[source], places[axis] = np.maximum(at[inside] - low, 0), inside
        found = np.zeros(tuple(size), np.float32)
        if not all(len(place) for place in places):
            return found
        # Lower and upper neighbours alone: a scan of a tenth of a millimetre takes no more memory than any other. In
        # ITK's order of operations, as cutting to integers shows each bit.
        values = voxels[np.ix_(*index)]
        for source, share in enumerate(shares):
            low, high = (part.astype(np.float64) for part in np.split(values, 2, axis=source))
            high -= low
            high *= share.reshape([-1 if a == source else 1 for a in range(3)])
            high += low
            values = high
        if voxels.dtype.kind in "iub":
            values = np.trunc(values)
        found[np.ix_(*places)] = values.transpose(self.turn.order)
        return found

    def labels(self, labels: NDArray[np.generic], begin: Begin, size: Sequence[int]) -> NDArray[np.generic]:
        """A cube of a label map on the scan's grid, the nearest voxel; 0 outside of it."""
        found = np.zeros(tuple(size), labels.dtype)
        index, places = self._empty(), self._empty()
        for axis, source in enumerate(self.turn.order):
            at = self._positions(axis, begin[axis], size[axis])
            index[source], places[axis] = _nearest(at, self.source.shape[source])
        if all(len(place) for place in places):
            found[np.ix_(*places)] = labels[np.ix_(*index)].transpose(self.turn.order)
        return found

    def restore(
        self, begin: Begin, size: Sequence[int]
    ) -> tuple[tuple[slice, ...], tuple[NDArray[np.intp], ...], tuple[int, ...]]:
        """Where a cube lies on the scan: a box of the scan, the cube's voxel that is nearest to each of its voxels
        along the axes of the file, and the order of the cube's axes that are those of the file.

        With ``box, index, order`` the values on the scan are ``cube.transpose(order)[np.ix_(*index)]``, to be put into
        ``scan[box]``.
        """
        order = tuple(int(a) for a in np.argsort(self.turn.order))
        lines = _lines(self.affine(begin), self.source.affine, self.source.shape, order)
        box, index = [slice(0, 0)] * 3, self._empty()
        for source, axis in enumerate(order):
            at = lines[source] if self.source.shape[source] > 1 else np.zeros(1) - begin[axis]
            chosen, there = _nearest(at, size[axis])
            if len(there):
                box[source], index[source] = slice(int(there[0]), int(there[-1]) + 1), chosen
        return tuple(box), tuple(index), order

    def _positions(self, axis: int, begin: int, size: int) -> NDArray[np.float64]:
        """Positions on the scan, along the file's axis, of a cube's voxels; minus infinity outside of the grid."""
        source, length = self.turn.order[axis], self.shape[axis]
        line = self._resampled[source] if self.source.shape[source] > 1 else np.zeros(1)
        straight = line[::-1] if self.turn.flipped[axis] else line
        index = np.arange(begin, begin + size)
        inside = (index >= 0) & (index < length)
        return np.where(inside, straight[np.clip(index, 0, length - 1)], -np.inf)

    @cached_property
    def _resampled(self) -> list[NDArray[np.float64]]:
        """Positions on the scan of the voxels of the resampled grid along each axis of the file."""
        target = self.turn.source
        return _lines(self.source.affine, target.affine, target.shape, (0, 1, 2))

    @staticmethod
    def _empty() -> list[NDArray[np.intp]]:
        return [np.zeros(0, np.intp)] * 3

    def _axes(self) -> list[tuple[int, float, int]]:
        """Of each axis of the grid: the axis of the file, new over old spacing, and length."""
        old = self.source.spacing_mm
        return [(s, self.spacing[s] / old[s], n) for s, n in zip(self.turn.order, self.shape, strict=True)]


def _lines(
    source: NDArray[np.float64], target: NDArray[np.float64], shape: Sequence[int], axes: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Positions along the axes ``axes`` of one grid of the voxels along each axis of another one.

    Computed as ITK does, through millimetres and along the first axis from its two ends: where a voxel lies half-way
    between two others, which is common, rounding decides which is the nearest.
    """
    scale = np.linalg.inv(source[:3, :3])
    found = []
    for axis, (n, wanted) in enumerate(zip(shape, axes, strict=True)):
        k = np.arange(n) if axis else np.array([0.0, n])
        away = [target[d, 3] + target[d, axis] * k - source[d, 3] for d in range(3)]
        at = scale[wanted, 0] * away[0] + scale[wanted, 1] * away[1] + scale[wanted, 2] * away[2]
        found.append(at if axis else at[0] + np.arange(n) / n * (at[1] - at[0]))
    return found


def _nearest(at: NDArray[np.float64], n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Voxels nearest to those positions that lie within an axis of ``n`` voxels, and which positions these are. Halves
    go up."""
    index = np.floor(at + 0.5)
    inside = np.flatnonzero((index >= 0) & (index < n))
    return index[inside].astype(np.intp), inside


def centred(low: ArrayLike, high: ArrayLike, size: Sequence[int]) -> Begin:
    """Begin of a cube whose centre is that of the box from voxel ``low`` to voxel ``high``, both in it."""
    found = []
    for a, b, n in zip(np.asarray(low).tolist(), np.asarray(high).tolist(), size, strict=True):
        centre = (a + b + 1) / 2
        # The cube begins at a whole voxel.
        if (centre == int(centre)) == bool(n % 2):
            centre -= 0.5
        found.append(int(centre - n / 2))
    return found[0], found[1], found[2]


def box_of(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """First and last voxel along each axis of what is true; ``None`` where nothing is."""
    low, high = np.zeros(3, np.intp), np.zeros(3, np.intp)
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(there):
            return None
        low[axis], high[axis] = there[0], there[-1]
    return low, high


def around(mask: NDArray[np.bool_], size: Sequence[int]) -> Begin:
    """Begin of the cube around what is true in ``mask`` [x, y, z] of the grid; around the middle of the grid where
    nothing is."""
    box = box_of(mask)
    if box is not None:
        return centred(*box, size)
    # Of an odd rest the greater half is before.
    first = [
        math.ceil((n - s) / 2) if n > s else -math.ceil((s - n) / 2) for n, s in zip(mask.shape, size, strict=True)
    ]
    return first[0], first[1], first[2]


def normalised(cube: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Minus the mean, over the (unbiased) standard deviation, of the voxels above 0; applied to all, padding too.
    ``None`` where fewer than two voxels are above 0 or all of those are the same."""
    inside = cube[cube > 0].astype(np.float64)
    deviation = inside.std(ddof=1) if len(inside) > 1 else 0.0
    if not deviation > 0:
        return None
    return ((cube - np.float32(inside.mean())) / np.float32(deviation)).astype(np.float32)
