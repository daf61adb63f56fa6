"""A whole brain through a network that takes cubes: blocks of planes, overlapping windows, streamed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import UsageError

#: A window [z, y, x] float32 to logits [classes, z, y, x].
Network = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
Triple = tuple[int, int, int]
#: Window and margin of the published models, in voxels.
WINDOW, OVERLAP = 128, 20
#: Larger arrays lie on disk, where the system keeps in memory what there is room for.
MOST_BYTES = 2**30


class Source:
    """What planes are taken from: an array [z, y, x] or a :class:`omlab.cases.Stack`."""

    def __init__(self, planes: Any) -> None:
        self.shape: Triple = tuple(int(n) for n in planes.shape)  # type: ignore[assignment]
        self.dtype = planes.dtype
        self.read: Callable[[int, int], NDArray[Any]] = getattr(planes, "read", lambda a, b: planes[a:b])
        self.depth = int(getattr(getattr(planes, "planes_from", None), "depth", 1))


@attrs.frozen
class Windows:
    """How a region is cut into windows.

    Attributes
    ----------
    start, stop : of the region, (z, y, x), the end not in it.
    side, overlap : sides of a window, and how far it reaches over what is kept of it, on every side.
    """

    start: Triple
    stop: Triple
    side: int = WINDOW
    overlap: int = OVERLAP

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.overlap < self.side / 2:
            raise UsageError(
                f"windows of {self.side} voxels overlap by 0 to {(self.side - 1) // 2}, not {self.overlap}"
            )

    @property
    def step(self) -> int:
        """Side of what is kept of a window."""
        return self.side - 2 * self.overlap

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the region."""
        return self.stop[1] - self.start[1], self.stop[2] - self.start[2]

    @property
    def padded(self) -> tuple[int, int]:
        """(rows, columns) with margins; at least a window."""
        rows, columns = (max(n, self.step) + 2 * self.overlap for n in self.size)
        return rows, columns

    def blocks(self) -> list[int]:
        """First planes of the blocks; the last one ends with the region and so may reach into the one before."""
        return [*range(self.start[0], self.stop[0] - self.step, self.step), self.stop[0] - self.step]

    def corners(self) -> list[tuple[int, int]]:
        """Where windows of a block lie, (row, column) in the region. In order: later ones are written over earlier
        ones. Where the order names a place several times only the last counts, as all give the same."""
        v, c = self.overlap, self.step
        high, wide = self.padded
        places: list[tuple[int, int]] = []
        for y in range(v, high - c - v + 1, c):
            for x in range(v, wide - c - v + 1, c):
                right, bottom = x + 2 * c + v >= wide, y + 2 * c + v >= high
                places.append((y, x))
                if right and bottom:
                    places.append((high - v - c, wide - v - c))
                if right:
                    places.append((y, wide - v - c))
                if bottom:
                    places.append((high - v - c, x))
        last = {place: number for number, place in enumerate(places)}
        return [(y - v, x - v) for (y, x), _ in sorted(last.items(), key=lambda item: item[1])]


def probabilities(
    planes: Any,
    windows: Windows,
    network: Network,
    *,
    normalise: str = "slice",
    background: float | None = None,
    folder: Path | None = None,
    seen: Callable[[int, NDArray[Any]], None] | None = None,
    done: Callable[[int, int, bool], None] | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(number of the plane, axon probability times 255 [y, x] of the region), plane by plane.

    Only the planes of one block are held. What lies beyond the brain counts as 0 along z; along y and x the border is
    repeated. A plane must be used before the next one is asked for.

    Parameters
    ----------
    planes : [z, y, x], an array or a :class:`omlab.cases.Stack`.
    normalise : ``"slice"`` takes mean and deviation of a whole block from its last plane, as upstream does for brains;
        ``"cube"`` from each window itself, as networks see cubes in training.
    background : windows without a value of at least this are background, and the network is not asked.
    folder : where arrays go that are too large for memory; the usual place for temporary files without.
    seen : called with each plane of the region as it is read: (number, [y, x]).
    done : called after each window with (windows done, windows in all, whether the network was asked).
    """
    source = Source(planes)
    n, c, v = windows.side, windows.step, windows.overlap
    starts, corners = windows.blocks(), windows.corners()
    rows, columns = windows.size
    ring = _room((n, *windows.padded), source.dtype, folder)
    kept = _room((c, rows, columns), np.dtype(np.uint8), folder)
    loader = _Loader(source, windows, ring, seen)
    count = 0
    for number, z in enumerate(starts):
        loader.upto(z - v, z + c + v)
        centre, spread = _statistics(source, z + c + v, z - v) if normalise == "slice" else (0.0, 1.0)
        order = np.arange(z - v, z - v + n) % n
        for y, x in corners:
            raw = np.take(ring[:, y : y + n, x : x + n], order, axis=0)
            asked = background is None or bool(raw.max() >= background)
            place = (slice(None), slice(y, min(y + c, rows)), slice(x, min(x + c, columns)))
            if asked:
                tile = raw.astype(np.float32)
                if normalise != "slice":
                    centre, spread = float(tile.mean(dtype=np.float64)), float(tile.std(dtype=np.float64))
                tile -= np.float32(centre)
                tile /= np.float32(spread + 1e-8)
                found = axon(network(tile)[(slice(None), *(slice(v, v + c),) * 3)])
                kept[place] = (found * np.float32(255)).astype(np.uint8)[:, : rows - y, : columns - x]
            else:
                kept[place] = 0
            count += 1
            if done is not None:
                done(count, len(starts) * len(corners), asked)
        end = starts[number + 1] if number + 1 < len(starts) else z + c
        for plane in range(max(z, 0), end):
            yield plane, kept[plane - z]


def axon(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Probability of an axon from logits [classes, ...]: soft-max, channel 1; of a single one the sigmoid."""
    logits = np.asarray(logits, np.float32)
    if len(logits) == 1:
        return _sigmoid(logits[0])
    if len(logits) == 2:
        return _sigmoid(logits[1] - logits[0])
    exponents = np.exp(logits - logits.max(axis=0))
    return np.asarray(exponents[1] / exponents.sum(axis=0), np.float32)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # the exponential of a large number is infinite, and the quotient 0
        return np.asarray(1 / (1 + np.exp(-x)), np.float32)


class _Loader:
    """Brings planes with their margins into a ring, each once."""

    def __init__(
        self, source: Source, windows: Windows, ring: NDArray[Any], seen: Callable[[int, NDArray[Any]], None] | None
    ) -> None:
        self._source, self._windows, self._ring, self._seen = source, windows, ring, seen
        self._next: int | None = None
        v = windows.overlap
        self._box: list[slice] = []
        self._pads: list[tuple[int, int]] = []
        for axis in (1, 2):
            start, stop = windows.start[axis], windows.stop[axis]
            low, high = max(0, start - v), min(source.shape[axis], stop + v)
            before = v - (start - low)
            self._box.append(slice(low, high))
            self._pads.append((before, windows.padded[axis - 1] - before - (high - low)))

    def upto(self, first: int, stop: int) -> None:
        """Have the planes from ``first`` on, before ``stop``."""
        n = len(self._ring)
        plane = first if self._next is None else max(first, self._next)
        while plane < stop:
            if not 0 <= plane < self._source.shape[0]:
                self._ring[plane % n] = 0
                plane += 1
                continue
            depth = self._source.depth
            together = min(stop, self._source.shape[0], (plane // depth + 1) * depth)
            for values in self._source.read(plane, together):
                part = values[self._box[0], self._box[1]]
                self._ring[plane % n] = np.pad(part, self._pads, mode="edge")
                if self._seen is not None and self._windows.start[0] <= plane < self._windows.stop[0]:
                    inner = tuple(
                        slice(a, b) for a, b in zip(self._windows.start[1:], self._windows.stop[1:], strict=True)
                    )
                    self._seen(plane, values[inner])
                plane += 1
        self._next = max(stop, self._next or stop)


def _statistics(source: Source, stop: int, first: int) -> tuple[float, float]:
    """Mean and standard deviation of the last plane before ``stop`` that the brain has, all of it. An even plane says
    nothing of how bright axons are, so the last one that is not even is taken."""
    centre = 0.0
    for plane in range(min(stop, source.shape[0]) - 1, max(first, 0) - 1, -1):
        values = source.read(plane, plane + 1)[0]
        centre, spread = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        if spread > 0:
            return centre, spread
    return centre, 1.0


def _room(shape: Sequence[int], dtype: np.dtype[Any], folder: Path | None) -> NDArray[Any]:
    """An empty array; on disk if it is large."""
    if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize <= MOST_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name: it goes with the array
        return np.memmap(file, dtype, "w+", shape=tuple(shape))
