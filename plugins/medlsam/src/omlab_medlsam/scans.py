"""CT scans as MedLAM sees them: LAS order as (z, y, x), 3 mm, Hounsfield units mapped to 0..1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Volume
from omlab.errors import InputError
from omlab.geometry import Geometry, Turn

SPACING_MM = 3.0
ORIENTATION = "LAS"
#: Hounsfield units and what they become; below and above the ends stay.
_WINDOW = ((-1000.0, -200.0, 200.0, 1500.0), (0.0, 0.2, 0.8, 1.0))
#: A scan whose least value is not below this is taken for one that is mapped already.
_HOUNSFIELD = -10
#: Spacings of real scans in mm, and the greatest extent of one axis: what is beyond was read wrongly.
LEAST_MM, GREATEST_MM, EXTENT_MM = 0.05, 30.0, 3000.0
#: Voxels of one part of a scan in floating point.
_PART = 1 << 23


@attrs.frozen(eq=False, kw_only=True)
class Prepared:
    """A scan, or its label map, at 3 mm.

    Attributes
    ----------
    turn : from the file's axes to LAS.
    zoom : (z, y, x) voxels of 3 mm a voxel of the file.
    image : [z, y, x] float32 in 0..1.
    """

    turn: Turn
    zoom: tuple[float, float, float]
    image: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) of the file's voxels, turned to LAS."""
        i, j, k = self.turn.target.shape
        return k, j, i

    def in_file(self, points: NDArray[Any]) -> NDArray[np.int64]:
        """Places [..., (z, y, x)] at 3 mm to voxels of the LAS array with the file's spacing, halves to even."""
        return np.around(np.asarray(points, np.float64) / np.asarray(self.zoom)).astype(np.int64)


def prepare(case: Volume) -> Prepared:
    """Turn, resample and map a scan.

    Raises
    ------
    InputError
        Its spacing or extent is impossible, or its values are not finite.
    """
    check_geometry(case.geometry, case.name)
    if case.voxels.dtype.kind == "f" and not np.isfinite(case.voxels).all():
        raise InputError(f"{case.name}: has values that are no numbers", remedy="Export the scan again")
    turn, zoom = placed(case.geometry)
    resized = resampled(turn.apply(case.voxels).transpose(2, 1, 0), zoom)
    return Prepared(turn=turn, zoom=zoom, image=mapped(resized))


def placed(geometry: Geometry) -> tuple[Turn, tuple[float, float, float]]:
    """The turn to LAS, and the zoom factors along z, y, x."""
    turn = Turn.to(geometry, ORIENTATION)
    x, y, z = (s / SPACING_MM for s in turn.target.spacing_mm)
    return turn, (z, y, x)


def check_geometry(geometry: Geometry, name: str) -> None:
    """Raises :class:`omlab.errors.InputError` for a spacing or an extent that no scan of a person has."""
    for axis, spacing, count in zip("ijk", geometry.spacing_mm, geometry.shape, strict=True):
        if not LEAST_MM <= spacing <= GREATEST_MM or not math.isfinite(spacing):
            raise InputError(
                f"{name}: has a spacing of {spacing:g} mm along {axis}, "
                f"{LEAST_MM:g} to {GREATEST_MM:g} mm are possible",
                remedy="Correct the header of the file",
            )
        if spacing * count > EXTENT_MM:
            raise InputError(
                f"{name}: is {spacing * count:.0f} mm long along {axis}, at most {EXTENT_MM:.0f} mm are possible",
                remedy="Correct the spacing in the header of the file",
            )
        if spacing * count < SPACING_MM:
            raise InputError(f"{name}: is {spacing * count:.2g} mm long along {axis}, which is less than one voxel")


def resampled(volume: NDArray[Any], zoom: Sequence[float]) -> NDArray[np.float32]:
    """``scipy.ndimage.zoom(volume, zoom, order=3)`` of the volume in floating point, as one matrix an axis; float32.

    A slab of the first axis is in floating point at a time.
    """
    down, across, along = (spline(n, _zoomed(n, factor)) for n, factor in zip(volume.shape, zoom, strict=True))
    step = max(1, _PART // max(1, volume.shape[1] * volume.shape[2]))
    planes = np.empty((volume.shape[0], len(across), len(along)), np.float64)
    for start in range(0, volume.shape[0], step):
        part = np.ascontiguousarray(volume[start : start + step], dtype=np.float64)
        planes[start : start + step] = across @ (part @ along.T)
    return np.tensordot(down, planes, axes=1).astype(np.float32)


def _zoomed(size: int, factor: float) -> int:
    return max(1, round(size * factor))


@lru_cache(maxsize=32)
def spline(source: int, target: int) -> NDArray[np.float64]:
    """Matrix [target, source] of scipy's cubic zoom of one axis: what it makes of every unit vector."""
    from scipy import ndimage

    if source == target:
        return np.eye(source)
    # A size of exactly target comes out for this factor; further columns are zoomed by 1, which leaves them.
    matrix = np.asarray(ndimage.zoom(np.eye(source), (target / source, 1.0), order=3), np.float64)
    matrix.setflags(write=False)
    return matrix


def mapped(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Hounsfield units to 0..1; a volume without values below -10 is left as it is."""
    if volume.size and volume.min() < _HOUNSFIELD:
        return np.interp(volume, *_WINDOW).astype(np.float32)
    return volume.astype(np.float32)


def resampled_labels(
    labels: NDArray[Any], zoom: Sequence[float], shape: Sequence[int] | None = None
) -> NDArray[np.uint16]:
    """Each label's mask is resized linearly, and of all the greatest share wins, the smallest label of equals.

    Parameters
    ----------
    zoom : factor of each axis; places are counted with the factors as given.
    shape : of the result; floor(n * zoom) without one.
    """
    sizes = shape or [max(1, math.floor(n * factor)) for n, factor in zip(labels.shape, zoom, strict=True)]
    matrices = [_linear(n, size, factor) for n, size, factor in zip(labels.shape, sizes, zoom, strict=True)]
    best: NDArray[np.float32] | None = None
    found = np.zeros(tuple(len(m) for m in matrices), np.uint16)
    for value in np.flatnonzero(np.bincount(labels.ravel().astype(np.int64))):
        shares = _resized_mask(labels == value, matrices)
        if best is None:
            best, found[...] = shares, value
            continue
        wins = shares > best
        best[wins], found[wins] = shares[wins], value
    return found


def _resized_mask(mask: NDArray[np.bool_], matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """[z, y, x] shares; only the box around the mask is multiplied."""
    box = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low, high = [int(b[0]) for b in box], [int(b[-1]) + 1 for b in box]
    part = mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float32)
    down, across, along = (m[:, a:b] for m, a, b in zip(matrices, low, high, strict=True))
    planes = across @ (part @ along.T)
    return np.tensordot(down, planes, axes=1).astype(np.float32)


def _linear(source: int, target: int, factor: float) -> NDArray[np.float32]:
    """[target, source]: linear between voxel centres, edges repeated, in float32 as upstream has it."""
    scale = np.float32(1.0 / factor)
    at = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = np.minimum(np.floor(at).astype(np.intp), source - 1)
    share = at - low.astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    rows = np.arange(target)
    matrix[rows, low] += np.float32(1) - share
    matrix[rows, np.minimum(low + 1, source - 1)] += share
    return matrix


def padded(volume: NDArray[Any], patch: int) -> NDArray[Any]:
    """Zeros of half a patch on every side, so that a patch fits around every voxel."""
    return np.pad(volume, patch // 2)


def patch_at(volume: NDArray[Any], place: Sequence[int], patch: int) -> NDArray[Any]:
    """[patch, patch, patch] around a place of a padded volume, the place at index patch / 2; zeros beyond the edge."""
    half = patch // 2
    low = [int(p) - half for p in place]
    inside = tuple(slice(max(0, a), max(0, min(n, a + patch))) for a, n in zip(low, volume.shape, strict=True))
    part = volume[inside]
    if part.shape == (patch,) * 3:
        return part
    found = np.zeros((patch,) * 3, volume.dtype)
    to = tuple(slice(s.start - a, s.start - a + n) for s, a, n in zip(inside, low, part.shape, strict=True))
    if part.size:
        found[to] = part
    return found
