"""A volume to a label map on the grid of the scan: windows, sums, resampling and arg-max as one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.inference.resampling import matrix
from omlab.inference.restoring import Late, label_map
from omlab.inference.sliding import Head, Network, Plan, Tally, plan, stream
from omlab.inference.sums import CompactPlane, FloatPlane

#: Memory for sums of scores, in bytes, unless told otherwise: with it a CT of 512 x 512 x 800 voxels and a hundred
#: structures stays within 4 GB in all.
MEMORY = 2_200_000_000
#: Axes are cut into at most so many parts: past that, windows are shared by most of them.
_MOST_CUTS = 8


@attrs.frozen
class Report:
    """How a volume was segmented.

    Attributes
    ----------
    windows : that were visited; ``reused`` and ``skipped`` ones did not need the network.
    compact : scores were summed in 16 bits.
    parts : the volume was worked on in so many parts one after another, so that the sums fit the memory; windows at
        their borders run once for each.
    """

    windows: int
    reused: int
    skipped: int
    compact: bool
    parts: int


@attrs.frozen(eq=False)
class _Piece:
    """A part of the label map: its plan, its place in the map, and how labels are made of its planes."""

    plan: Plan
    place: tuple[slice, ...]
    late: Late


def segment(
    volume: NDArray[np.float32],
    out: NDArray[np.unsignedinteger[Any]],
    patch: Sequence[int],
    network: Network,
    *,
    classes: int,
    features: int = 0,
    head: Head | Callable[[], Head] | None = None,
    apart: int | None = None,
    step: float = 0.5,
    mirror: Sequence[int] = (),
    starts: Sequence[Sequence[int]] | None = None,
    weighted: bool = True,
    softmax: bool = True,
    batch: int = 1,
    skip: Callable[[tuple[slice, ...]], bool] | None = None,
    reuse: bool = True,
    memory: float = MEMORY,
    done: Callable[[int, int], None] | None = None,
) -> Report:
    """Write the class of the greatest averaged score of every voxel of ``out``.

    Parameters
    ----------
    volume : [channels, a, b, c], prepared for the network.
    out : label map [a', b', c'], any strides; the same field of view as ``volume`` on another grid or on its own.
    patch, step, weighted, mirror, softmax, head, batch, skip, reuse : see :func:`omlab.inference.sliding.stream`.
    starts : see :func:`omlab.inference.sliding.plan`.
    classes : number of scores a voxel.
    features : number of features a voxel, if the network gives these and ``head`` is the last layer.
    apart : axis of thick slices, across which the nearest slice's scores are taken; else scores are interpolated
        linearly, voxels as cells.
    memory : bytes for sums of scores. Where they need more, they are kept in 16 bits (labels change where two scores
        are within 1e-5 of each other), and where that is not enough the volume is worked on in parts.
    done : called after windows with (windows done, windows in all).

    Raises
    ------
    ValueError
        Steps or shapes do not fit.
    omlab.errors.EngineError
        The network's scores are not finite.
    """
    shape = volume.shape[1:]
    early: list[NDArray[np.float64] | None] = [None] * 3
    late: list[NDArray[np.float64] | None] = [None] * 3
    for d, (n, m) in enumerate(zip(shape, out.shape, strict=True)):
        if n != m:
            (early if m < n else late)[d] = matrix(n, m, 0 if d == apart else 1)
    # Without soft-max the head may come after everything else; fewer numbers are summed where features are fewer.
    late_head = head is not None and not softmax and 0 < features < classes - 1
    numbers = features + 1 if late_head else classes
    compact, pieces = _pieces(shape, out.shape, patch, step, weighted, early, late, numbers, softmax, memory, starts)

    def joined() -> NDArray[np.float32]:
        found = head() if callable(head) else head
        assert found is not None
        return found.joined

    tally = Tally()
    total = sum(piece.plan.windows for piece in pieces)
    before = 0
    for piece in pieces:
        first = before

        def told(count: int, _: int, first: int = first) -> None:
            if done is not None:
                done(first + count, total)

        planes = stream(
            volume, piece.plan, network, head=head, late_head=late_head, mirror=mirror, softmax=softmax,
            compact=compact, batch=batch, skip=skip, reuse=reuse, tally=tally, done=told,
        )  # fmt: skip
        part = np.moveaxis(out[piece.place], piece.plan.axis, 0)
        label_map(planes, part, piece.late, probabilities=softmax, head=joined if late_head else None)
        before += piece.plan.windows
    return Report(tally.windows, tally.reused, tally.skipped, compact, len(pieces))


def _pieces(
    shape: Sequence[int],
    target: Sequence[int],
    patch: Sequence[int],
    step: float,
    weighted: bool,
    early: Sequence[NDArray[np.float64] | None],
    late: Sequence[NDArray[np.float64] | None],
    classes: int,
    softmax: bool,
    memory: float,
    starts: Sequence[Sequence[int]] | None,
) -> tuple[bool, list[_Piece]]:
    """Whether to sum in 16 bits, and the parts of the volume: the first way that fits the memory."""

    def pieces_of(cuts: Sequence[int], axis: int | None) -> Iterator[_Piece]:
        for place in _places(target, cuts):
            yield _piece(shape, patch, step, weighted, early, late, place, axis, starts)

    ways = [False] + ([True] if softmax else [])
    whole = list(pieces_of((1, 1, 1), None))
    axis = whole[0].plan.axis
    for compact in ways:
        if _need(whole[0], classes, compact) <= memory:
            return compact, whole
    cuts = [1, 1, 1]
    found = whole
    for _ in range(2 * (_MOST_CUTS - 1)):
        # Cut the wider of the two axes across the planes once more.
        d = max((d for d in range(3) if d != axis), key=lambda d: (cuts[d] < _MOST_CUTS, target[d] / cuts[d]))
        if cuts[d] >= min(_MOST_CUTS, target[d]):
            break
        cuts[d] += 1
        found = list(pieces_of(cuts, axis))
        if max(_need(piece, classes, softmax) for piece in found) <= memory:
            break
    return softmax, found


def _need(piece: _Piece, classes: int, compact: bool) -> float:
    """Bytes for the sums of a part. Beside the planes in work two final ones are kept in float32."""
    cells = piece.plan.cells
    final = 2 * FloatPlane.BYTES * np.prod(cells, dtype=float) / cells[piece.plan.axis]
    return float(classes * (piece.plan.scores * (CompactPlane if compact else FloatPlane).BYTES + final))


def _places(target: Sequence[int], cuts: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    a, b, c = ([slice(n * i // k, n * (i + 1) // k) for i in range(k)] for n, k in zip(target, cuts, strict=True))
    for first in a:
        for second in b:
            for third in c:
                yield first, second, third


def _piece(
    shape: Sequence[int],
    patch: Sequence[int],
    step: float,
    weighted: bool,
    early: Sequence[NDArray[np.float64] | None],
    late: Sequence[NDArray[np.float64] | None],
    place: tuple[slice, ...],
    axis: int | None,
    starts: Sequence[Sequence[int]] | None,
) -> _Piece:
    own: list[tuple[int, int]] = []
    rest: list[NDArray[np.float64] | None] = []
    for wanted, matrix_late in zip(place, late, strict=True):
        if matrix_late is None:
            own.append((wanted.start, wanted.stop))
            rest.append(None)
            continue
        rows = matrix_late[wanted]
        used = np.flatnonzero(rows.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        own.append((low, high))
        rest.append(rows[:, low:high])
    found = plan(shape, patch, step=step, weighted=weighted, onto=early, own=own, axis=axis, starts=starts)
    a, b = (d for d in range(3) if d != found.axis)
    planes = place[found.axis].stop - place[found.axis].start
    return _Piece(found, place, Late.of(rest[found.axis], rest[a], rest[b], planes))
