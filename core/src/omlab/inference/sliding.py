"""Sliding windows over a volume, stitched plane by plane.

Windows overlap, so a voxel's scores are final only when the last window that touches it is done. Windows go along one
axis of the volume; planes that no later window touches are handed out and forgotten. There are never scores for more
than one patch's depth.

Rules after nnU-Net 1.7.1: starts spread evenly, a Gaussian that trusts the middle of a window, soft-max before the
average over mirrored views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import prod
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import EngineError
from omlab.inference.reducing import Part, parts_along, reduce_into
from omlab.inference.sums import CompactPlane, FloatPlane
from omlab.inference.windows import gaussian_lines, mirrorings, padding, window_starts
from omlab.memory import usable_cpus

#: [windows, channels, a, b, c] float32 to scores or features [windows, n, a, b, c] float32.
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: Numbers that one step of the stitching looks at: they stay in the processor's cache.
_CHUNK = 1 << 18
#: Planes along the last axis are taken only where those of another need this many times their memory.
_SCATTERED = 1.5
#: Logits up to this size can be exponentiated as they are: nothing overflows and nothing vanishes.
_SAFE = 80.0


@attrs.frozen(eq=False)
class Head:
    """The last layer of a network, a 1 x 1 x 1 convolution, left to the stitching.

    A window has many times more scores than features. Probabilities are made here, in pieces that stay in the
    processor's cache, so scores never go through memory. Where scores are averaged as they are, the layer commutes
    with all that follows: features are summed and resampled in their place, and scores are made only for the label
    map (:func:`omlab.inference.restoring.label_map`).

    Attributes
    ----------
    weight : [classes, features] float32.
    bias : [classes] float32.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def joined(self) -> NDArray[np.float32]:
        """[classes, features + 1]: the bias is the weight of one more feature, which is always 1."""
        return np.hstack([self.weight, self.bias[:, None]]).astype(np.float32)


@attrs.frozen(eq=False)
class Plane:
    """Scores that no further window touches.

    Attributes
    ----------
    number : of the plane along the axis of the plan.
    scores : [rows, classes, columns] float32; rows and columns are the other two axes of the volume, in order. With a
        late head [rows, features + 1, columns], the last of them the sum of weights.
    """

    number: int
    scores: NDArray[np.float32]


@attrs.define
class Tally:
    """What became of the windows.

    Attributes
    ----------
    windows : in all, once for each time they are visited.
    reused : a constant window whose scores were known from another of the same value.
    skipped : taken for background without running the network.
    """

    windows: int = 0
    reused: int = 0
    skipped: int = 0


@attrs.frozen(eq=False)
class Plan:
    """Where windows lie and where their scores go; made by :func:`plan`.

    Attributes
    ----------
    patch : (a, b, c) of a window.
    cut : (before, after) padding of each axis.
    parts : axis -> what each window along it gives.
    cells : cells along each axis that scores are summed in.
    axis : along which planes follow each other.
    """

    patch: tuple[int, int, int]
    cut: tuple[tuple[int, int], ...]
    parts: tuple[tuple[Part | None, ...], ...]
    cells: tuple[int, int, int]
    axis: int

    @property
    def depth(self) -> int:
        """Planes that are in work at once."""
        parts = self.parts[self.axis]
        stops = self.final_stops()
        begins = [0, *stops[:-1]]
        return max(part.cells.stop - begin for part, begin in zip(parts, begins, strict=True) if part is not None)

    def final_stops(self) -> list[int]:
        """For each window along the axis: planes before this one are final when it is done."""
        parts = self.parts[self.axis]
        found = []
        for number in range(len(parts)):
            later = [part.cells.start for part in parts[number + 1 :] if part is not None]
            found.append(min(later, default=self.cells[self.axis]))
        return found

    @property
    def scores(self) -> int:
        """Numbers a class that are in work at once."""
        return self.depth * prod(self.cells) // self.cells[self.axis]

    @property
    def windows(self) -> int:
        """Windows that give something."""
        return prod(sum(part is not None for part in parts) for parts in self.parts)


def plan(
    shape: Sequence[int],
    patch: Sequence[int],
    *,
    step: float = 0.5,
    weighted: bool = True,
    onto: Sequence[NDArray[np.float64] | None] = (None, None, None),
    own: Sequence[tuple[int, int] | None] = (None, None, None),
    axis: int | None = None,
    starts: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Lay windows over a volume.

    Parameters
    ----------
    shape : (a, b, c) of the volume; padded with zeros where it is smaller than the patch, which is cut off again.
    patch : (a, b, c) of a window.
    step : distance of neighbouring windows at most, as a share of the patch.
    weighted : trust the middle of windows, if there is more than one.
    onto : for each axis, how cells are made of voxels: [cells, voxels]; ``None`` sums voxels themselves.
    own : for each axis, the cells that are wanted (from, to); windows that do not touch them are left out.
    axis : along which planes follow each other; without, the one that takes least memory, or little more.
    starts : first voxel of the windows along each axis of the padded volume, ascending, in place of those of ``step``;
        one that is named twice counts twice.

    Raises
    ------
    ValueError
        The step or the shapes do not fit.
    """
    a, b, c = (int(p) for p in patch)
    cut = padding(shape, (a, b, c))
    padded = [n + before + after for n, (before, after) in zip(shape, cut, strict=True)]
    starts = window_starts(padded, (a, b, c), step) if starts is None else starts
    lines: tuple[NDArray[np.float64], ...] = tuple(np.ones(p) for p in (a, b, c))
    if weighted and prod(len(s) for s in starts) > 1:
        lines = gaussian_lines((a, b, c))
    parts = tuple(
        parts_along(shape[d], cut[d][0], (a, b, c)[d], starts[d], lines[d], onto[d], own[d]) for d in range(3)
    )
    sizes = []
    for d, (matrix, wanted) in enumerate(zip(onto, own, strict=True)):
        low, high = wanted or (0, shape[d] if matrix is None else len(matrix))
        sizes.append(high - low)
    cells = (sizes[0], sizes[1], sizes[2])
    if axis is None:
        # Equal needs fall to the axis whose planes are contiguous in a C-ordered volume: the first. Numbers of planes
        # along the last lie scattered, and take several times as long to sum.
        costs = [Plan((a, b, c), cut, parts, cells, d).scores * (_SCATTERED if d == 2 else 1) for d in range(3)]
        axis = costs.index(min(costs))
    return Plan((a, b, c), cut, parts, cells, axis)


def stream(
    volume: NDArray[np.float32],
    plan: Plan,
    network: Network,
    *,
    head: Head | Callable[[], Head] | None = None,
    late_head: bool = False,
    mirror: Sequence[int] = (),
    softmax: bool = True,
    compact: bool = False,
    batch: int = 1,
    skip: Callable[[tuple[slice, ...]], bool] | None = None,
    reuse: bool = True,
    tally: Tally | None = None,
    done: Callable[[int, int], None] | None = None,
) -> Iterator[Plane]:
    """Run ``network`` on the windows of ``plan`` and yield what is final, plane by plane.

    Parameters
    ----------
    volume : [channels, a, b, c] of the plan's shape.
    head : the last layer, if ``network`` gives features; a callable is asked after the first window.
    late_head : hand out sums of features, to which the head is still to be applied; only without ``softmax``.
    mirror : spatial axes (0..2); scores are averaged over all combinations of flips.
    softmax : average probabilities; else whatever the network gives.
    compact : sum in 16 bits (:class:`omlab.inference.sums.CompactPlane`); only with ``softmax``.
    batch : windows that the network is given at once, at most.
    skip : is asked for each window, with its slices of the volume; where it says yes, the window is background
        (class 0) with certainty. Only with ``softmax``.
    reuse : give a window whose voxels all have one value the scores of an earlier one with that value. Exact: a
        network gives the same for the same.
    tally : is told what became of the windows.
    done : called after each window with (windows done, windows in all).

    Raises
    ------
    ValueError
        ``compact`` or ``skip`` without ``softmax``, or ``late_head`` with it.
    omlab.errors.EngineError
        The network's scores are not finite.
    """
    if not softmax and (compact or skip is not None):
        raise ValueError("only probabilities can be summed in 16 bits or taken for background")
    if late_head and (softmax or head is None):
        raise ValueError("only a head whose scores are averaged as they are can come late")
    tally = Tally() if tally is None else tally
    padded = np.pad(volume, ((0, 0), *plan.cut)) if any(map(any, plan.cut)) else volume
    stitcher = _Stitcher(plan, head, late_head, softmax, CompactPlane if compact else FloatPlane)
    views = mirrorings(mirror)
    others = [d for d in range(3) if d != plan.axis]
    constant: tuple[float, NDArray[np.float32]] | None = None
    count = stop = 0

    def finish(windows: int) -> None:
        nonlocal count
        count += windows
        if done is not None:
            done(count, plan.windows)

    with ThreadPoolExecutor(max_workers=usable_cpus(), thread_name_prefix="omlab-stitch") as pool:
        stitcher.pool = pool
        for first, final in zip(plan.parts[plan.axis], plan.final_stops(), strict=True):
            queue: list[tuple[tuple[Part, ...], NDArray[np.float32]]] = []
            for pair in product(*(plan.parts[d] for d in others)) if first is not None else ():
                parts: Any = tuple(first if d == plan.axis else pair[others.index(d)] for d in range(3))
                if None in parts:
                    continue
                place = tuple(slice(part.start, part.start + p) for part, p in zip(parts, plan.patch, strict=True))
                window = padded[(slice(None), *place)]
                tally.windows += 1
                # How many classes there are is known after the first window.
                if skip is not None and stitcher.classes and skip(_inside(place, plan.cut, volume.shape[1:])):
                    tally.skipped += 1
                    stitcher.add_background(parts)
                    finish(1)
                    continue
                value = float(window.flat[0])
                if reuse and (window == value).all():
                    if constant is None or constant[0] != value:
                        constant = value, network(np.ascontiguousarray(window[None]))[0]
                    else:
                        tally.reused += 1
                    for flips in views:
                        stitcher.add(parts, constant[1], flips, 1 / len(views))
                    finish(1)
                    continue
                queue.append((parts, window))
                if len(queue) == batch:
                    stitcher.run(network, queue, views)
                    finish(len(queue))
                    queue = []
            if queue:
                stitcher.run(network, queue, views)
                finish(len(queue))
            for number in range(stop, final):
                yield Plane(number, stitcher.take(number))
            stop = max(stop, final)


def _inside(place: tuple[slice, ...], cut: Sequence[tuple[int, int]], shape: Sequence[int]) -> tuple[slice, ...]:
    """Slices of the padded volume as those of the volume."""
    return tuple(
        slice(max(0, s.start - before), min(n, s.stop - before))
        for s, (before, _), n in zip(place, cut, shape, strict=True)
    )


class _Stitcher:
    """The planes in work, and how the scores of a window get there."""

    def __init__(
        self, plan: Plan, head: Head | Callable[[], Head] | None, late_head: bool, softmax: bool, kind: Any
    ) -> None:
        self.classes = 0
        self.pool: Any = None
        self._plan, self._given_head, self._softmax, self._kind = plan, head, softmax, kind
        self._late_head = late_head
        self._planes: dict[int, Any] = {}
        self._row_axis, self._column_axis = (d for d in range(3) if d != plan.axis)
        self._weight: NDArray[np.float32] | None = None
        self._pieces: dict[tuple[int, int], list[tuple[Part, slice]]] = {}

    def run(self, network: Network, queue: Sequence[tuple[Any, NDArray[np.float32]]], views: Sequence[Any]) -> None:
        """Run the network on windows in every view and add what it gives."""
        for flips in views:
            axes = tuple(axis + 1 for axis in flips)
            found = network(np.stack([np.flip(window, axes) for _, window in queue]))
            for (parts, _), scores in zip(queue, found, strict=True):
                self.add(parts, scores, flips, 1 / len(views))

    def take(self, number: int) -> NDArray[np.float32]:
        """Scores of a final plane, which is forgotten here."""
        scores: NDArray[np.float32] = self._planes.pop(number).scores()
        if not self._softmax:  # what is not finite is so in every sum that it is in
            _demand_finite(scores.sum())
        return scores

    def add(self, parts: tuple[Part, ...], scores: NDArray[np.float32], flips: Sequence[int], share: float) -> None:
        """Add scores (features, with a head) [n, a, b, c] of a window that was shown mirrored."""
        if not self.classes:
            self._begin(len(scores))
        turned = np.flip(scores, tuple(axis + 1 for axis in flips))
        turned = turned.transpose(0, *(1 + d for d in (self._plan.axis, self._row_axis, self._column_axis)))
        along, columns = parts[self._plan.axis], parts[self._column_axis]
        rows = self._cut_up(parts[self._row_axis], max(1, _CHUNK // (self.classes * turned.shape[3])))
        for number in range(along.cells.start, along.cells.stop):
            if number not in self._planes:
                self._planes[number] = self._new_plane()
        # Tasks have planes of their own, so none waits for another.
        depth = -(-(along.cells.stop - along.cells.start) // usable_cpus())
        tasks = self._cut_up(along, depth)
        list(self.pool.map(lambda task: self._task(turned, *task, rows, columns, share), tasks))

    def add_background(self, parts: tuple[Part, ...]) -> None:
        """Add a window that is class 0 everywhere."""
        along, rows, columns = (parts[d] for d in (self._plan.axis, self._row_axis, self._column_axis))
        sums = [part.matrix.sum(axis=1).astype(np.float32) for part in (along, rows, columns)]
        face = np.outer(sums[1], sums[2])
        for number, part in zip(range(along.cells.start, along.cells.stop), sums[0], strict=True):
            if number not in self._planes:
                self._planes[number] = self._new_plane()
            self._planes[number].add_background(rows.cells, columns.cells, face * part)

    def _begin(self, channels: int) -> None:
        if self._late_head:
            self.classes = channels + 1
            return
        head = self._given_head() if callable(self._given_head) else self._given_head
        self.classes = channels
        if head is not None:
            self.classes = len(head.weight)
            self._weight = head.joined

    def _new_plane(self) -> Any:
        cells = self._plan.cells
        return self._kind(cells[self._row_axis], self.classes, cells[self._column_axis])

    def _cut_up(self, part: Part, count: int) -> list[tuple[Part, slice]]:
        """The part in pieces of at most ``count`` cells, with the voxels of each; pieces of a part are kept."""
        key = id(part), count
        if key not in self._pieces:
            cells = part.cells.stop - part.cells.start
            self._pieces[key] = [part.within(low, min(low + count, cells)) for low in range(0, cells, count)]
        return self._pieces[key]

    def _task(
        self,
        scores: NDArray[np.float32],
        along: Part,
        planes: slice,
        rows: list[tuple[Part, slice]],
        columns: Part,
        share: float,
    ) -> None:
        """Add what the window gives to the planes of ``along``."""
        weights = columns.weights * share
        most = max(voxels.stop - voxels.start for _, voxels in rows)
        maker = _Maker(self._weight, self.classes, self._softmax, most, scores.shape[3])
        matrix = along.matrix.astype(np.float32)
        for place, plane in enumerate(range(planes.start, planes.stop)):
            targets = np.flatnonzero(matrix[:, place])
            for row, voxels in rows if len(targets) else ():
                scale = np.outer(row.weights * along.weights[place], weights).astype(np.float32)
                found = maker.make(scores[:, plane, voxels], scale)
                if not _copies(row):
                    found = reduce_into(found, row, 0, None)
                if not _copies(columns):
                    found = reduce_into(found, columns, 2, None)
                for target in targets:
                    added = found if along.pairs is not None else found * matrix[target, place]
                    self._planes[along.cells.start + int(target)].add(row.cells, columns.cells, added)


def _copies(part: Part) -> bool:
    """Are the cells the voxels of the window, one by one?"""
    if part.pairs is None or len(part.pairs) != 1 or part.pairs[0][2] is not None:
        return False
    place = part.pairs[0][1]
    return place == slice(0, len(part.weights), 1)


class _Maker:
    """Weighted probabilities (or scores) of a few rows, made in memory of its own."""

    def __init__(
        self, weight: NDArray[np.float32] | None, classes: int, softmax: bool, rows: int, columns: int
    ) -> None:
        self._weight, self._softmax = weight, softmax
        self._size = None if weight is None else np.abs(weight)
        self._scores = np.empty((rows, classes, columns), np.float32)
        self._sums = np.empty((rows, columns), np.float32)
        if weight is not None:
            self._features = np.ones((rows, weight.shape[1], columns), np.float32)

    def make(self, given: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """[rows, classes, columns] of ``given`` [n, rows, columns], times ``scale`` [rows, columns]."""
        rows = given.shape[1]
        scores, sums = self._scores[:rows], self._sums[:rows]
        # NumPy walks in the order of the first operand. In memory the rows of one feature lie side by side, those of
        # the next far away: walked in the order of the scores, each row of numbers would wait for the memory.
        if self._weight is None and not self._softmax:
            np.multiply(given, scale, out=scores[:, : len(given)].transpose(1, 0, 2))
            scores[:, len(given) :] = scale[:, None]  # the one more feature of a late head
            return scores
        safe = False
        if self._weight is None:
            np.positive(given, out=scores.transpose(1, 0, 2))
        else:
            features = self._features[:rows]
            np.positive(given, out=features[:, :-1].transpose(1, 0, 2))
            np.matmul(self._weight, features, out=scores)
            if self._softmax:
                peak = np.abs(features).max(axis=2).max(axis=0)
                safe = bool((self._size @ peak).max() < _SAFE)
        if self._softmax:
            if not safe:
                scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            np.add.reduce(scores, axis=1, out=sums)
            _demand_finite(sums)
            scale = scale / sums
        scores *= scale[:, None]
        return scores


def _demand_finite(numbers: NDArray[np.float32] | np.float32) -> None:
    if not np.isfinite(numbers).all():
        raise EngineError(
            "the network gives numbers that are not finite, scores were expected",
            remedy="Run it in another precision, say float32",
        )
