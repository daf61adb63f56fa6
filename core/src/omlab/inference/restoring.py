"""From streamed scores to a label map on another grid, without scores on that grid ever being whole.

nnU-Net resamples the probabilities of all classes to the scan's grid and takes the arg-max: for a whole body and a
hundred structures that is tens of gigabytes. Here two planes of scores are kept at a time, and the scan's grid is made
tile by tile, only for the classes that can win there: scores are averages of probabilities, which sum to one, so a
class that is nowhere above 1 / classes in the neighbourhood of a tile cannot be the greatest in it. The labels are
those of the whole computation, up to ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.inference.sliding import Plane
from omlab.memory import usable_cpus

#: Rows and columns of the tiles that candidates are chosen for.
_TILE = (48, 96)
#: Rows and columns of the blocks whose greatest scores are known.
_BLOCK = 8
#: The sum of averaged probabilities may fall short of one by rounding.
_SLACK = 0.99


@attrs.frozen(eq=False)
class Late:
    """How labels are made of planes of scores: what is still to be resampled.

    Attributes
    ----------
    low, high, share : of each plane of labels: its two planes of scores and the upper one's share.
    rows, columns : resampling within planes, [n_out, n_in] float64; ``None`` where nothing changes.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float64]
    rows: NDArray[np.float64] | None = None
    columns: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        along: NDArray[np.float64] | None,
        rows: NDArray[np.float64] | None,
        columns: NDArray[np.float64] | None,
        planes: int,
    ) -> Late:
        """From the resampling matrix of each axis, of which rows have one or two entries; ``planes`` of labels."""
        if along is None:
            every = np.arange(planes)
            return cls(every, every, np.zeros(planes), rows, columns)
        there = along != 0
        low = there.argmax(axis=1)
        high = along.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
        share = np.where(high > low, along[np.arange(len(along)), high], 0.0)
        return cls(low, high, share, rows, columns)

    @property
    def copies(self) -> bool:
        """Is every plane of labels made of one plane of scores, as it is?"""
        return self.rows is None and self.columns is None and not self.share.any()


def label_map(
    planes: Iterable[Plane],
    out: NDArray[np.unsignedinteger[Any]],
    late: Late,
    *,
    probabilities: bool = True,
    head: Callable[[], NDArray[np.float32]] | None = None,
) -> None:
    """Write the class of the greatest score of every voxel of ``out``.

    Parameters
    ----------
    planes : in order, without gaps (:func:`omlab.inference.sliding.stream`).
    out : label map [planes, rows, columns], any strides.
    late : how planes of labels are made of planes of scores.
    probabilities : scores are not negative and sum to one; else every class is computed everywhere.
    head : planes are sums of features; gives the [classes, features + 1] that makes scores of them
        (:attr:`omlab.inference.sliding.Head.joined`), asked when there is a plane. Not with ``probabilities``.

    Raises
    ------
    ValueError
        Planes are missing, or there are more classes than ``out`` can name.
    """
    kept: dict[int, _Kept] = {}
    restorer = _Restorer(out, late)
    with ThreadPoolExecutor(max_workers=usable_cpus(), thread_name_prefix="omlab-restore") as pool:
        for plane in planes:
            if head is not None and restorer.head is None:
                restorer.head = head()
            classes = plane.scores.shape[1] if restorer.head is None else len(restorer.head)
            if classes - 1 > np.iinfo(out.dtype).max:
                raise ValueError(f"{classes} classes do not fit labels of {out.dtype}")
            kept[plane.number] = _Kept.of(plane.scores, blocks=probabilities and not late.copies)
            restorer.write(kept, plane.number, pool)
    if not restorer.complete:
        raise ValueError(f"plane {restorer.next} of {len(out)} was never made: its scores did not come")


@attrs.frozen(eq=False)
class _Kept:
    """Scores [rows, classes, columns] of a plane, and the greatest of every block where they are of use."""

    scores: NDArray[np.float32]
    blocks: NDArray[np.float32] | None

    @classmethod
    def of(cls, scores: NDArray[np.float32], *, blocks: bool) -> _Kept:
        if not blocks:
            return cls(scores, None)
        rows, columns = (np.arange(0, n, _BLOCK) for n in (scores.shape[0], scores.shape[2]))
        return cls(scores, np.maximum.reduceat(np.maximum.reduceat(scores, rows, axis=0), columns, axis=2))


@attrs.define(eq=False)
class _Restorer:
    """How far the writing is."""

    out: NDArray[Any]
    late: Late
    head: NDArray[np.float32] | None = None
    next: int = 0

    @property
    def complete(self) -> bool:
        return self.next == len(self.out)

    def write(self, planes: dict[int, _Kept], newest: int, pool: ThreadPoolExecutor) -> None:
        """Write all planes that ``newest`` makes possible, and forget the source planes that are done with."""
        first, late = self.next, self.late
        while not self.complete and late.high[self.next] <= newest:
            self.next += 1
        missing = {int(n) for n in (*late.low[first : self.next], *late.high[first : self.next])} - set(planes)
        if missing:
            raise ValueError(f"plane {min(missing)} of the scores never came")
        # Where nothing is resampled there is nothing to choose, and large tiles cost less.
        high, wide = self.out.shape[1:] if late.copies and self.head is None else _TILE
        tiles = [
            (number, row, column)
            for number in range(first, self.next)
            for row in range(0, self.out.shape[1], high)
            for column in range(0, self.out.shape[2], wide)
        ]
        list(pool.map(lambda tile: self._tile(planes, *tile, high, wide), tiles))
        needed = late.low[self.next] if not self.complete else newest + 1
        for number in [n for n in planes if n < needed]:
            del planes[number]

    def _tile(self, planes: dict[int, _Kept], number: int, row: int, column: int, high: int, wide: int) -> None:
        late = self.late
        out = self.out[number, row : row + high, column : column + wide]
        rows, r = _part(late.rows, row, out.shape[0])
        columns, c = _part(late.columns, column, out.shape[1])
        lower, upper = planes[int(late.low[number])], planes[int(late.high[number])]
        candidates = self._candidates(lower, upper, r, c)
        if candidates is not None and len(candidates) == 1:
            out[...] = candidates[0]
            return
        scores = _take(lower.scores, r, candidates, c)
        share = np.float32(late.share[number])
        if share:
            scores = scores * (1 - share)
            scores += _take(upper.scores, r, candidates, c) * share
        if columns is not None:
            scores = scores @ columns.T
        if rows is not None:
            scores = (rows @ scores.reshape(len(scores), -1)).reshape(len(rows), *scores.shape[1:])
        if self.head is not None:
            # Scores are linear in features, as is resampling: the order does not matter.
            scores = np.matmul(self.head, scores)
        names = range(scores.shape[1]) if candidates is None else candidates.tolist()
        best = scores[:, 0].copy()
        labels = np.full(best.shape, names[0], out.dtype)
        for place, name in enumerate(names[1:], start=1):
            np.copyto(labels, out.dtype.type(name), where=scores[:, place] > best)
            np.maximum(best, scores[:, place], out=best)
        out[...] = labels

    def _candidates(self, lower: _Kept, upper: _Kept, rows: slice, columns: slice) -> NDArray[np.intp] | None:
        """Classes that can win between the two planes within these rows and columns, ascending; ``None`` for all."""
        if lower.blocks is None or upper.blocks is None:
            return None
        r, c = (slice(s.start // _BLOCK, -(-s.stop // _BLOCK)) for s in (rows, columns))
        greatest = lower.blocks[r, :, c].max(axis=(0, 2))
        if upper is not lower:
            greatest = np.maximum(greatest, upper.blocks[r, :, c].max(axis=(0, 2)))
        found = np.flatnonzero(greatest >= _SLACK / len(greatest))
        return None if len(found) in (0, len(greatest)) else found


def _take(scores: NDArray[np.float32], rows: slice, classes: NDArray[np.intp] | None, columns: slice) -> Any:
    part = scores[rows, :, columns]
    return part if classes is None else part[:, classes]


def _part(whole: NDArray[np.float64] | None, start: int, count: int) -> tuple[NDArray[np.float32] | None, slice]:
    """The rows of a resampling matrix for part of the output, and the part of the input that they look at; no matrix
    where they copy it."""
    if whole is None:
        return None, slice(start, start + count)
    rows = whole[start : start + count]
    used = np.flatnonzero(rows.any(axis=0))
    reach = slice(int(used[0]), int(used[-1]) + 1)
    return rows[:, reach].astype(np.float32), reach
