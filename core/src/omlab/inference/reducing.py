"""What the windows along one axis of a volume give to the cells that scores are summed in.

The sum over windows, the division by their weights and linear resampling are all linear, and each of them acts on one
axis at a time. So they are one product an axis, known before the first window runs: no weights are summed beside the
scores, and where the grid to restore is coarser than the network's, scores are summed on the coarser one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

#: Stretches of equally spaced taps that are still worth one slice each.
_RUNS = 8
#: A place on an axis: a slice where cells are equally spaced, else their numbers.
Place = slice | NDArray[np.intp]


@attrs.frozen(eq=False)
class Part:
    """What one window gives along one axis.

    Attributes
    ----------
    start : first voxel of the window on the padded axis.
    cells : cells that it gives to.
    matrix : [cells, patch] float64, how much each voxel of the window gives to each cell.
    weights : [patch] float64: with ``pairs`` the weight of each voxel, 0 where it gives nothing.
    pairs : (cells, first voxels, second voxels or ``None``) if every voxel gives to a single cell, and every cell
        takes one or two of the window; then a cell is the sum of weighted voxels. ``None`` where it is not so.
    """

    start: int
    cells: slice
    matrix: NDArray[np.float64]
    weights: NDArray[np.float64]
    pairs: tuple[tuple[Place, Place, Place | None], ...] | None

    def within(self, low: int, high: int) -> tuple[Part, slice]:
        """The same for the cells ``low`` to ``high`` of ``cells`` alone, and the voxels of the window that they take;
        its own voxels are counted from the first of these."""
        rows = self.matrix[low:high]
        used = np.flatnonzero(rows.any(axis=0))
        voxels = slice(int(used[0]), int(used[-1]) + 1)
        cells = slice(self.cells.start + low, self.cells.start + high)
        return part_of(self.start, cells, rows[:, voxels]), voxels


def part_of(start: int, cells: slice, matrix: NDArray[np.float64]) -> Part:
    """From the matrix of a window's voxels."""
    taken = (matrix != 0).sum(axis=0)
    if taken.max(initial=0) > 1 or (matrix != 0).sum(axis=1).max(initial=0) > 2:
        return Part(start, cells, matrix, np.ones(matrix.shape[1]), None)
    return Part(start, cells, matrix, matrix.sum(axis=0), _pairs(matrix))


def _pairs(matrix: NDArray[np.float64]) -> tuple[tuple[Place, Place, Place | None], ...]:
    taps = [np.flatnonzero(row) for row in matrix]
    runs: list[list[int]] = []
    for cell, voxels in enumerate(taps):
        last = taps[runs[-1][-1]] if runs else None
        step = None if not runs or len(runs[-1]) < 2 else taps[runs[-1][-1]] - taps[runs[-1][-2]]
        goes_on = (
            last is not None
            and len(last) == len(voxels)
            and len(set((voxels - last).tolist())) == 1
            and (step is None or np.array_equal(step, voxels - last))
        )
        if goes_on:
            runs[-1].append(cell)
        else:
            runs.append([cell])
    found: list[tuple[Place, Place, Place | None]] = []
    if len(runs) <= _RUNS:
        for run in runs:
            cells = slice(run[0], run[-1] + 1)
            places = [_slice([int(taps[cell][n]) for cell in run]) for n in range(len(taps[run[0]]))]
            found.append((cells, places[0], places[1] if len(places) > 1 else None))
        return tuple(found)
    for count in (1, 2):
        cells_of = np.array([cell for cell, voxels in enumerate(taps) if len(voxels) == count], np.intp)
        if len(cells_of):
            columns = np.array([taps[cell] for cell in cells_of])
            found.append((cells_of, columns[:, 0], columns[:, 1] if count == 2 else None))
    return tuple(found)


def _slice(numbers: Sequence[int]) -> slice:
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    return slice(numbers[0], numbers[-1] + 1, step)


def parts_along(
    count: int,
    before: int,
    patch: int,
    starts: Sequence[int],
    line: NDArray[np.float64],
    onto: NDArray[np.float64] | None,
    own: tuple[int, int] | None = None,
) -> tuple[Part | None, ...]:
    """What each window along an axis gives; ``None`` for a window that gives nothing.

    Parameters
    ----------
    count : voxels of the axis, without padding.
    before : voxels of padding before the first.
    patch : voxels of a window.
    starts : first voxels of the windows, on the padded axis.
    line : [patch] importance of each voxel of a window; several windows over a voxel share it in this proportion.
    onto : [cells, count] how cells are made of voxels; ``None`` if they are the voxels.
    own : cells that are wanted, from and to; all without. Cells of the result are counted from the first of them.
    """
    shares = np.zeros((len(starts), count))
    for row, start in zip(shares, starts, strict=True):
        low, high = max(0, start - before), min(count, start - before + patch)
        row[low:high] = line[low - start + before : high - start + before]
    shares /= shares.sum(axis=0)
    low, high = own or (0, count if onto is None else len(onto))
    found: list[Part | None] = []
    for start, row in zip(starts, shares, strict=True):
        there = slice(max(0, start - before), min(count, start - before + patch))
        if onto is None:
            first, last = max(low, there.start), min(high, there.stop)
            matrix = np.zeros((max(0, last - first), there.stop - there.start))
            places = np.arange(first, last)
            matrix[places - first, places - there.start] = row[first:last]
            rows = places - low
        else:
            matrix = np.asarray(onto[low:high, there], np.float64) * row[there]
            rows = np.flatnonzero(matrix.any(axis=1))
            matrix = matrix[rows[0] : rows[-1] + 1] if len(rows) else matrix
        if not len(rows):
            found.append(None)
            continue
        taken = slice(int(rows[0]), int(rows[-1]) + 1)
        whole = np.zeros((taken.stop - taken.start, patch))
        whole[:, there.start - start + before : there.stop - start + before] = matrix
        found.append(part_of(start, taken, whole))
    return tuple(found)


def reduce_into(values: NDArray[Any], part: Part, axis: int, out: NDArray[Any] | None) -> NDArray[Any]:
    """``values`` [rows, classes, columns], weighted already, summed along ``axis`` (0 or 2) into the cells of ``part``.

    With ``part.pairs`` the values carry ``part.weights``; else the matrix has them.
    """
    count = part.cells.stop - part.cells.start
    shape = (count, *values.shape[1:]) if axis == 0 else (*values.shape[:2], count)
    if out is None or out.shape != shape:
        out = np.empty(shape, values.dtype)
    if part.pairs is None:
        matrix = part.matrix.astype(values.dtype)
        if axis == 0:
            np.matmul(matrix, values.reshape(len(values), -1), out=out.reshape(count, -1))
        else:
            np.matmul(values, matrix.T, out=out)
        return out
    for cells, first, second in part.pairs:
        to, one, two = ((p, ...) if axis == 0 else (..., p) for p in (cells, first, second))
        if second is None:
            out[to] = values[one]
        elif isinstance(cells, slice):
            np.add(values[one], values[two], out=out[to])
        else:
            out[to] = values[one] + values[two]
    return out
