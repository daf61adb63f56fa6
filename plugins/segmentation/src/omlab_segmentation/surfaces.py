"""Surfaces of all structures of a label map in one pass, and distances between surfaces that lie on one lattice.

A voxel is on the surface of its own structure if a face neighbour is of another; a corner between voxels carries a
surface element for every structure that has some of the 2 x 2 x 2 voxels around it but not all. Both are seen for all
structures at once, so the cost does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from omlab_segmentation.surfels import areas, weights

#: Places around a point that are looked at before a tree is asked.
_NEIGHBOURS = 600
#: Places that are looked at together at least, once the nearest were; more for few points.
_ROUND = 32
_GATHERED = 1 << 20
#: Questions to a tree that one thread answers sooner than several are started.
_ALONE = 20_000
#: Bytes of label map that are looked at together.
_CACHED = 1 << 20

Points = NDArray[np.intp]


@attrs.frozen(eq=False)
class Elements:
    """Surface elements of one structure.

    Attributes
    ----------
    places : [n, axes] on the lattice of voxels or of corners.
    sizes : [n] what each weighs: its area (3D, mm^2) or length (2D, mm), 1 for voxels.
    """

    places: Points
    sizes: NDArray[np.float64]


def nothing(axes: int) -> Elements:
    """Of a structure without voxels."""
    return Elements(np.zeros((0, axes), np.intp), np.zeros(0))


def voxels(labels: NDArray[Any]) -> dict[int, Elements]:
    """Label -> its voxels with a face neighbour of another label; outside of the array is background (0)."""
    values, places = [], []
    for start, block in _blocks(labels, 2):
        inner = tuple(slice(1, -1) for _ in range(labels.ndim))
        edge = np.zeros([n - 2 for n in block.shape], bool)
        for axis in range(labels.ndim):
            changes = np.moveaxis(np.diff(block, axis=axis) != 0, axis, 0)
            within = tuple(slice(1, -1) for _ in range(labels.ndim - 1))
            edge |= np.moveaxis((changes[1:] | changes[:-1])[(slice(None), *within)], 0, axis)
        own = block[inner]
        edge &= own != 0
        where = np.nonzero(edge)
        values.append(own[where])
        places.append(np.stack([where[0] + start, *where[1:]], axis=1))
    found = _by_label(np.concatenate(values), np.concatenate(places), None)
    return {label: Elements(own, np.ones(len(own))) for label, own, _ in found}


def elements(labels: NDArray[Any], spacing: Sequence[float]) -> dict[int, Elements]:
    """Label -> its surface elements (:mod:`omlab_segmentation.surfels`), for voxels of ``spacing`` mm."""
    corners = list(product((0, 1), repeat=labels.ndim))
    sizes = areas(spacing)
    weight = [int(weights(labels.ndim)[corner]) for corner in corners]
    found_labels, found_places, found_sizes = [], [], []
    for start, block in _blocks(labels, 1):
        windows = [
            block[tuple(slice(c, n - 1 + c) for c, n in zip(corner, block.shape, strict=True))] for corner in corners
        ]
        mixed = windows[1] != windows[0]
        for window in windows[2:]:
            mixed |= window != windows[0]
        places = np.nonzero(mixed)
        around = np.stack([window[places] for window in windows])
        where = np.stack([places[0] + start, *places[1:]], axis=1)
        for number, own in enumerate(around):
            # Each label of a corner once, at its first voxel.
            first = own != 0
            for before in around[:number]:
                first &= before != own
            chosen = np.flatnonzero(first)
            value = own[chosen]
            code = np.zeros(len(chosen), np.intp)
            for other, part in zip(around, weight, strict=True):
                code += (other[chosen] == value) * part
            found_labels.append(value)
            found_places.append(where[chosen])
            found_sizes.append(sizes[code])
    every = _by_label(*(np.concatenate(parts) for parts in (found_labels, found_places, found_sizes)))
    return {label: Elements(own, size) for label, own, size in every}


def _blocks(labels: NDArray[Any], more: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Planes of ``labels`` within a border of background, a few at a time so that they stay in the processor's cache:
    the number of the first place of a block, and its planes with ``more`` beyond those that have their place in it."""
    count, plane = labels.shape[0], labels.shape[1:]
    step = max(1, _CACHED // max(1, labels.itemsize * int(np.prod(plane))))
    places = count + 2 - more
    for start in range(0, places, step):
        stop = min(places, start + step)
        block = np.zeros((stop - start + more, *(n + 2 for n in plane)), labels.dtype)
        low, high = max(0, start - 1), min(count, stop + more - 1)
        inner = tuple(slice(1, -1) for _ in plane)
        block[(slice(low - start + 1, high - start + 1), *inner)] = labels[low:high]
        yield start, block


def _by_label(values: NDArray[Any], places: Points, sizes: Any) -> Iterator[tuple[int, Points, Any]]:
    order = np.argsort(values, kind="stable")
    labels, starts = np.unique(values[order], return_index=True)
    stops = np.append(starts, len(order))[1:].tolist()
    for label, start, stop in zip(labels.tolist(), starts.tolist(), stops, strict=True):
        own = order[start:stop]
        yield int(label), places[own], None if sizes is None else sizes[own]


def distances(points: Points, others: Points, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Distance [n] in mm of every place to the nearest of ``others``, both [n, axes] on one lattice; infinite where
    there is none.

    Surfaces of two outlines of one structure mostly coincide or lie a few voxels apart. So the places around each point
    are looked up, the nearest first, and a tree is asked only for the points that are still alone then.
    """
    found = np.full(len(points), np.inf)
    if not len(points) or not len(others):
        return found
    steps, lengths = _around(tuple(float(s) for s in spacing))
    reach = np.abs(steps).max(axis=0)
    low = np.minimum(points.min(axis=0), others.min(axis=0)) - reach
    shape = np.maximum(points.max(axis=0), others.max(axis=0)) + reach + 1 - low
    there = np.zeros(int(np.prod(shape)), bool)
    there[np.ravel_multi_index((others - low).T, shape)] = True
    flat = np.ravel_multi_index((points - low).T, shape)
    strides = np.append(np.cumprod(shape[:0:-1])[::-1], 1)
    alone = np.arange(len(points))
    jumps = steps @ strides
    low_step, many = 0, 1
    while low_step < len(jumps) and len(alone):
        high_step = min(len(jumps), low_step + many)
        hits = there[flat[:, None] + jumps[low_step:high_step]]
        first = hits.argmax(axis=1)
        near = hits[np.arange(len(first)), first]
        found[alone[near]] = lengths[low_step + first[near]]
        before = len(alone)
        alone, flat = alone[~near], flat[~near]
        # Most are found at once or close by. Where hardly any are, the rest is far away.
        if low_step > _ROUND and len(alone) > 0.9 * before:
            break
        low_step, many = high_step, min(2 * many + 4, max(_ROUND, _GATHERED // max(1, len(alone))))
    if not len(alone):
        return found
    scale = np.asarray(spacing, np.float64)
    # Unbalanced trees of large leaves are quicker to build for points on a grid, and the answer is the same.
    tree = cKDTree(others * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
    found[alone] = tree.query(points[alone] * scale, workers=-1 if len(alone) > _ALONE else 1)[0]
    return found


@lru_cache(maxsize=64)
def _around(spacing: tuple[float, ...]) -> tuple[Points, NDArray[np.float64]]:
    """Steps on the lattice, nearest first, and their lengths: all up to the length that about so many have."""
    sides = np.asarray(spacing)
    ball = {2: np.pi, 3: 4 / 3 * np.pi}[len(spacing)]
    farthest = (_NEIGHBOURS * sides.prod() / ball) ** (1 / len(spacing))
    most = np.floor(farthest / sides).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, len(sides))
    lengths = np.sqrt(((steps * sides) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= farthest]
    return steps[order], lengths[order]


def of(given: Mapping[int, Elements], label: int, axes: int) -> Elements:
    """Elements of a label, none where it has no voxel."""
    return given.get(label) or nothing(axes)


def content(*labels: NDArray[Any]) -> tuple[slice, ...]:
    """Box of all that is not background in label maps of one shape; empty if nothing is. Nothing beyond it changes a
    surface within."""
    box = []
    for axis in range(labels[0].ndim):
        others = tuple(d for d in range(labels[0].ndim) if d != axis)
        used = np.flatnonzero(np.logical_or.reduce([given.any(axis=others) for given in labels]))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
    return tuple(box)
