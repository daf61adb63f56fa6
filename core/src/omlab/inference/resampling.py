"""Resampling of volumes by nnU-Net's rules, as products with banded matrices.

Interpolation on a regular grid is separable: every axis is a matrix with a few entries a row, and a volume is resampled
by one matrix product an axis, which costs a tenth of visiting the neighbours of every output voxel. The numbers are
those of ``scipy.ndimage.zoom(..., mode="nearest", grid_mode=True)``: voxels are cells, the centre of output cell i lies
at ``(n_in / n_out) * (i + 0.5) - 0.5``, and beyond the edge the edge value goes on.

Rules after nnU-Net 1.7.1 (Isensee et al., Nature Methods 2021): images by cubic splines, clipped to their range; labels
one by one, the voxel where half a label arrives; scans with thick slices in the plane first, nearest neighbour across.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Spacings whose ratio is above this are thick slices.
ANISOTROPIC = 3.0
#: Cells that a cubic spline is continued by on either side before it is fitted, as scipy does.
_MARGIN = 12
#: Entries below this are left out of the products: a spline's taps shrink by 0.268 a cell and never end.
_NEGLIGIBLE = 1e-9
#: Rows of one block of a banded product.
_ROWS = 64
#: Voxels of a scan that are in floating point at once.
_PART = 1 << 22
Shape = tuple[int, ...]


def target_shape(shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> Shape:
    """Voxels an axis after resampling: the ratio of the spacings first, halves to even."""
    ratio = np.asarray(spacing, np.float64) / np.asarray(new_spacing, np.float64)
    return tuple(int(n) for n in np.round(ratio * np.asarray(shape)))


def separate_axis(spacing: Sequence[float], new_spacing: Sequence[float], limit: float = ANISOTROPIC) -> int | None:
    """The axis that is resampled apart from the other two, or ``None``.

    It is the coarsest axis of ``spacing`` if that is anisotropic (coarsest over finest above ``limit``), else the one
    of ``new_spacing`` if that is; none where several are equally coarse.
    """
    for each in (np.asarray(spacing, np.float64), np.asarray(new_spacing, np.float64)):
        if each.max() / each.min() > limit:
            coarsest = np.flatnonzero(each.max() / each == 1)
            return int(coarsest[0]) if len(coarsest) == 1 else None
    return None


def positions(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Where the centres of the output cells lie on the input axis, [n_out] float64, from -0.5 to n_in - 0.5."""
    return (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5


def nearest(n_in: int, n_out: int) -> NDArray[np.intp]:
    """Input cell that each output cell lies in, [n_out]; a border belongs to the cell above."""
    return np.clip(np.floor(positions(n_in, n_out) + 0.5), 0, n_in - 1).astype(np.intp)


def linear(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Lower neighbour, upper neighbour and the upper one's share, [n_out] each."""
    at = np.clip(positions(n_in, n_out), 0, n_in - 1)
    low = np.floor(at).astype(np.intp)
    return low, np.minimum(low + 1, n_in - 1), at - low


@lru_cache(maxsize=64)
def matrix(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    """The resampling of one axis as a matrix [n_out, n_in] float64, read-only; the identity where nothing changes.

    Parameters
    ----------
    order : 0 nearest cell, 1 linear, 3 cubic B-spline through the values.

    Raises
    ------
    ValueError
        Another order.
    """
    rows = np.arange(n_out)
    found = np.zeros((n_out, n_in))
    if n_in == n_out:
        found[rows, rows] = 1
    elif order == 0:
        found[rows, nearest(n_in, n_out)] = 1
    elif order == 1:
        low, high, share = linear(n_in, n_out)
        np.add.at(found, (rows, low), 1 - share)
        np.add.at(found, (rows, high), share)
    elif order == 3:
        found = _cubic(n_in, n_out)
    else:
        raise ValueError(f"resampling has the orders 0, 1 and 3, found {order}")
    found.setflags(write=False)
    return found


def _cubic(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Continue the axis by its edge values, solve for the coefficients of the spline, evaluate it."""
    long = n_in + 2 * _MARGIN
    at = positions(n_in, n_out) + _MARGIN
    base = np.floor(at).astype(np.intp)
    t = (at - base)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    evaluate = np.zeros((n_out, long))
    evaluate[np.arange(n_out)[:, None], base[:, None] + np.arange(-1, 3)] = weights
    every = _fitted(evaluate)
    found = every[:, _MARGIN : long - _MARGIN].copy()
    found[:, 0] += every[:, :_MARGIN].sum(axis=1)
    found[:, -1] += every[:, long - _MARGIN :].sum(axis=1)
    found[np.abs(found) < _NEGLIGIBLE] = 0
    return found


def _fitted(evaluate: NDArray[np.float64]) -> NDArray[np.float64]:
    """``evaluate`` [n_out, n] for coefficients as a matrix for values: the spline through the values is found by
    solving three diagonals (1, 4, 1) / 6, whose corners are 5 / 6 as the axis goes on by its edge values."""
    long = evaluate.shape[1]
    diagonal = np.full(long, 4 / 6)
    diagonal[0] = diagonal[-1] = 5 / 6
    found = evaluate.T.copy()
    for n in range(1, long):
        part = (1 / 6) / diagonal[n - 1]
        diagonal[n] -= part / 6
        found[n] -= part * found[n - 1]
    found[-1] /= diagonal[-1]
    for n in range(long - 2, -1, -1):
        found[n] = (found[n] - found[n + 1] / 6) / diagonal[n]
    return found.T


def along(
    array: NDArray[Any], matrix: NDArray[np.float64], axis: int, dtype: type[np.floating[Any]] | None = None
) -> NDArray[Any]:
    """``array`` with ``axis`` resampled by ``matrix`` [n_out, n_in], computed in ``dtype`` (its own without), part by
    part: a scan of integers is never whole in floating point."""
    kind = np.dtype(array.dtype if dtype is None else dtype)
    shape = (*array.shape[:axis], len(matrix), *array.shape[axis + 1 :])
    result = np.empty(shape, kind)
    other = 0 if axis else min(1, array.ndim - 1)
    if other == axis:
        return _along(np.ascontiguousarray(array, kind), matrix, axis)
    count = max(1, int(_PART * array.shape[other] // max(1, array.size)))
    for start in range(0, array.shape[other], count):
        part = (slice(None),) * other + (slice(start, start + count),)
        result[part] = _along(np.ascontiguousarray(array[part], kind), matrix, axis)
    return result


def _along(array: NDArray[Any], matrix: NDArray[np.float64], axis: int) -> NDArray[Any]:
    n_out, n_in = matrix.shape
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    flat = array.reshape(int(np.prod(before)), n_in, int(np.prod(after)))
    result = np.empty((flat.shape[0], n_out, flat.shape[2]), array.dtype)
    for start in range(0, n_out, _ROWS):
        block = matrix[start : start + _ROWS]
        used = np.flatnonzero(block.any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        part = block[:, low:high].astype(array.dtype)
        if flat.shape[2] == 1:  # the last axis: one large product in place of one a line
            result[:, start : start + _ROWS, 0] = flat[:, low:high, 0] @ part.T
        else:
            np.matmul(part, flat[:, low:high], out=result[:, start : start + _ROWS])
    return result.reshape(*before, n_out, *after)


def resample_image(
    image: NDArray[Any], shape: Sequence[int], *, order: int = 3, apart: int | None = None
) -> NDArray[np.float32]:
    """One channel at another resolution, float32.

    Parameters
    ----------
    image : three axes, any real dtype; computed in float32.
    shape : of the result.
    order : 3 for images, 1 for probabilities, 0.
    apart : axis of thick slices (:func:`separate_axis`): the other two are interpolated slice by slice, across it the
        nearest slice is taken.

    The result is clipped to the range of the input, with ``apart`` to that of each slice. Where the shape does not
    change, the values do not.
    """
    shape = tuple(int(n) for n in shape)
    values = np.asarray(image)
    if values.shape == shape:
        return values.astype(np.float32, copy=False)
    plane = None if apart is None else tuple(axis for axis in range(3) if axis != apart)
    low = values.min(axis=plane, keepdims=plane is not None)
    high = values.max(axis=plane, keepdims=plane is not None)
    # The axis that shrinks most goes first, so that the others have less to do.
    for axis in sorted((a for a in range(3) if a != apart), key=lambda a: shape[a] / values.shape[a]):
        if values.shape[axis] != shape[axis]:
            values = along(values, matrix(values.shape[axis], shape[axis], order), axis, np.float32)
    if values is image or values.dtype != np.float32:
        values = values.astype(np.float32)
    np.clip(values, low, high, out=values)
    if apart is not None and values.shape[apart] != shape[apart]:
        values = np.take(values, nearest(values.shape[apart], shape[apart]), axis=apart)
    return values


def resample_labels(
    labels: NDArray[Any], shape: Sequence[int], *, order: int = 1, apart: int | None = None
) -> NDArray[Any]:
    """A label map at another resolution, in its own dtype.

    Order 0 takes the nearest voxel. Order 1 interpolates the mask of each label, in ascending order, and writes the
    label where at least a half arrives; where no label does the result is 0. Across ``apart`` the nearest slice is
    taken. Labels below -1 become 0 if an axis is resampled apart.
    """
    shape = tuple(int(n) for n in shape)
    labels = np.asarray(labels)
    if labels.shape == shape:
        return labels
    if order == 0:
        return np.ascontiguousarray(labels[np.ix_(*(nearest(a, b) for a, b in zip(labels.shape, shape, strict=True)))])
    if apart is not None:
        labels = np.take(labels, nearest(labels.shape[apart], shape[apart]), axis=apart)
    result = np.zeros(shape, labels.dtype)
    matrices = [matrix(a, b, order) for a, b in zip(labels.shape, shape, strict=True)]
    for value in np.unique(labels):
        # Zero is there from the start; it must be written only over a label below it.
        if value == 0 and labels.min() >= 0:
            continue
        _write_label(labels == value, value, matrices, result)
    if apart is not None:
        result[result < -1] = 0
    return result


def _write_label(mask: NDArray[np.bool_], value: Any, matrices: list[NDArray[np.float64]], out: NDArray[Any]) -> None:
    """Write ``value`` where at least half of ``mask`` arrives; only the box that the mask can reach is computed."""
    box, reach, parts = [], [], []
    for axis, each in enumerate(matrices):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = int(there[0]), int(there[-1]) + 1
        rows = np.flatnonzero(each[:, low:high].any(axis=1))
        if not len(rows):
            return
        box.append(slice(low, high))
        reach.append(slice(int(rows[0]), int(rows[-1]) + 1))
        parts.append(each[reach[-1], low:high])
    values = mask[tuple(box)].astype(np.float64)
    for axis, part in enumerate(parts):
        values = _along_unless_identity(values, part, axis)
    out[tuple(reach)][values >= 0.5] = value


def _along_unless_identity(values: NDArray[np.float64], part: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    if part.shape[0] == part.shape[1] and np.array_equal(part, np.eye(len(part))):
        return values
    return along(values, part, axis)
