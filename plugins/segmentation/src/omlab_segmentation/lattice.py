"""Places of voxels and of the corners between them as single numbers, so that a step to a neighbour is an addition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

#: Places around a point that are looked at before a tree is asked.
NEIGHBOURS = 600

Places = NDArray[np.intp]


@attrs.frozen(eq=False)
class Lattice:
    """Numbered places of the voxels of an array and of their corners, with empty places around them.

    Along an axis of n voxels there are n + 1 corners; corner p lies between voxels p - 1 and p. Beyond the last one
    are so many empty places that no step of :attr:`steps` from a place ends at one of another row, and before the first
    and after the last place of all so many that none ends outside.

    Attributes
    ----------
    shape : places along each axis, the empty ones with them.
    spacing : mm along each axis.
    margin : number of the first place.
    size : places in all.
    jumps : steps to the places around, the nearest first, as differences of numbers.
    lengths : mm, of each jump.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    margin: int
    size: int
    jumps: Places
    lengths: NDArray[np.float64]

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float]) -> Lattice:
        """For arrays of one shape."""
        spacing = tuple(float(s) for s in spacing)
        steps, lengths = _around(spacing)
        reach = np.abs(steps).max(axis=0)
        padded = tuple(n + 1 + int(r) for n, r in zip(shape, reach, strict=True))
        jumps = steps @ _strides(padded)
        margin = int(max(np.abs(jumps).max(), _strides(padded).sum()))
        return cls(padded, spacing, margin, 2 * margin + int(np.prod(padded)), jumps, lengths)

    @property
    def strides(self) -> Places:
        """[axes] from a place to the next along each axis."""
        return _strides(self.shape)

    def filled(self, labels: NDArray[Any]) -> NDArray[Any]:
        """[size] the labels of an array at the places of its voxels, 0 elsewhere."""
        found = np.zeros(self.size, labels.dtype)
        inner = found[self.margin : self.size - self.margin].reshape(self.shape)
        inner[tuple(slice(0, n) for n in labels.shape)] = labels
        return found

    def indices(self, places: Places) -> Places:
        """[places, axes] along each axis of the array."""
        return np.stack(np.unravel_index(places - self.margin, self.shape), axis=1)


def _strides(shape: Sequence[int]) -> Places:
    return np.append(np.cumprod(shape[:0:-1])[::-1], 1).astype(np.intp)


@lru_cache(maxsize=64)
def _around(spacing: tuple[float, ...]) -> tuple[Places, NDArray[np.float64]]:
    """Steps on the lattice, nearest first, and their lengths: all up to the length that about so many have."""
    sides = np.asarray(spacing)
    ball = {2: np.pi, 3: 4 / 3 * np.pi}[len(spacing)]
    farthest = (NEIGHBOURS * sides.prod() / ball) ** (1 / len(spacing))
    most = np.floor(farthest / sides).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, len(sides))
    lengths = np.sqrt(((steps * sides) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= farthest]
    return steps[order], lengths[order]
