"""Centre lines and densities of a mask that comes plane by plane."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from omlab_axon_seg.labels import Mask, skeleton

#: Planes that are thinned at once, rows and columns of a tile, and how far it looks beyond on every side. Lines at
#: seams may lie a voxel beside those of the whole volume.
PLANES, TILE, MARGIN = 64, 256, 24


class Thinner:
    """Centre lines of a mask, in bounded memory: planes wait as bits until their surroundings are there.

    Parameters
    ----------
    size : (rows, columns) of the planes.
    """

    def __init__(self, size: tuple[int, int], *, planes: int = PLANES, tile: int = TILE, margin: int = MARGIN) -> None:
        self.size, self._planes, self._tile, self._margin = size, planes, tile, margin
        self._waiting: deque[NDArray[np.uint8]] = deque()
        self._first = self._given = 0  # number of the first waiting plane, of the next that is given out
        self._count = 0

    def push(self, mask: Mask) -> Iterator[Mask]:
        """Take the next plane [y, x]; gives centre lines of planes before it, in order, as they are known."""
        self._waiting.append(np.packbits(mask, axis=1))
        self._count += 1
        if self._count - self._given >= self._planes + self._margin:
            yield from self._thin(self._planes)

    def finish(self) -> Iterator[Mask]:
        """What is left, after the last plane."""
        while self._given < self._count:
            yield from self._thin(min(self._planes, self._count - self._given))

    def _thin(self, count: int) -> Iterator[Mask]:
        low = max(0, self._given - self._margin)
        high = min(self._count, self._given + count + self._margin)
        while self._first < low:
            self._waiting.popleft()
            self._first += 1
        packed = np.stack([self._waiting[n - self._first] for n in range(low, high)])
        inner = slice(self._given - low, self._given - low + count)
        rows, columns = self.size
        found = np.zeros((count, rows, packed.shape[2]), np.uint8)
        for top in range(0, rows, self._tile):
            bottom = min(rows, top + self._tile)
            y0, y1 = max(0, top - self._margin), min(rows, bottom + self._margin)
            if packed[:, y0:y1].any():
                band = np.unpackbits(packed[:, y0:y1], axis=2, count=columns).view(bool)
                lines = np.zeros((count, bottom - top, columns), bool)
                for left in range(0, columns, self._tile):
                    right = min(columns, left + self._tile)
                    x0, x1 = max(0, left - self._margin), min(columns, right + self._margin)
                    thin = skeleton(band[:, :, x0:x1])
                    lines[:, :, left:right] = thin[inner, top - y0 : bottom - y0, left - x0 : right - x0]
                found[:, top:bottom] = np.packbits(lines, axis=2)
        self._given += count
        for plane in found:
            yield np.unpackbits(plane, axis=1, count=columns).view(bool)


class CellSums:
    """Sums over cells of a volume that comes plane by plane; a plane of cells is given out when it is complete.

    Parameters
    ----------
    size : (rows, columns) of the planes.
    cell : voxels along each side; the last cells of an axis may have fewer.
    """

    def __init__(self, size: tuple[int, int], cell: int) -> None:
        self.cell = cell
        self._places = [np.arange(0, n, cell) for n in size]
        self._sides = [np.minimum(cell, n - places) for n, places in zip(size, self._places, strict=True)]
        self._sums = np.zeros([len(places) for places in self._places])
        self._planes = 0

    def push(self, values: NDArray[np.generic]) -> Iterator[NDArray[np.float32]]:
        """Take the next plane [y, x]; gives the mean of a voxel in each cell [row, column]."""
        rows = np.add.reduceat(values, self._places[0], axis=0, dtype=np.float64)
        self._sums += np.add.reduceat(rows, self._places[1], axis=1)
        self._planes += 1
        if self._planes == self.cell:
            yield self._mean()

    def finish(self) -> Iterator[NDArray[np.float32]]:
        """The last plane of cells, if it has begun."""
        if self._planes:
            yield self._mean()

    def _mean(self) -> NDArray[np.float32]:
        voxels = self._planes * self._sides[0][:, None] * self._sides[1][None, :]
        found = (self._sums / voxels).astype(np.float32)
        self._sums[:] = 0
        self._planes = 0
        return found
