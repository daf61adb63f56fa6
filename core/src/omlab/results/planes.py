"""Volumes as stacks of planes, which is how files hold them: i fastest, then j, then k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Planes that are turned at once, and voxels along i: a strip of them stays in the cache.
_PLANES, _STRIP = 64, 16


def slabs(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """[i, j, k] as [k, j, i] in C order, a few planes at a time; the memory is used again for the next ones."""
    planes = np.empty((min(_PLANES, array.shape[2]), array.shape[1], array.shape[0]), array.dtype)
    for first in range(0, array.shape[2], _PLANES):
        slab = planes[: array.shape[2] - first]
        _turn(array[:, :, first : first + len(slab)], slab)
        yield slab


def stacked(array: NDArray[Any]) -> NDArray[Any]:
    """[i, j, k] as [k, j, i] in C order; no copy where it lies so already."""
    turned = array.transpose(2, 1, 0)
    if turned.flags.c_contiguous:
        return turned
    out = np.empty(turned.shape, array.dtype)
    for first in range(0, len(out), _PLANES):
        _turn(array[:, :, first : first + _PLANES], out[first : first + _PLANES])
    return out


def _turn(array: NDArray[Any], out: NDArray[Any]) -> None:
    """[i, j, k] into [k, j, i]; an array with k fastest in strips, four times as fast as plane by plane."""
    strip = _STRIP if abs(array.strides[0]) > array.itemsize else max(1, array.shape[0])
    for i in range(0, array.shape[0], strip):
        out[:, :, i : i + strip] = array[i : i + strip].transpose(2, 1, 0)
