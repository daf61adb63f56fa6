"""Surfaces of all structures of a label map in one pass, and distances between those of two maps.

A voxel is on the surface of its own structure if a face neighbour is of another; a corner between voxels carries a
surface element for every structure that has some of the 2 x 2 x 2 voxels around it but not all. Both are seen for all
structures at once, and so are the distances to the nearest element of the same structure: the cost grows with the
surface, not with the number of structures.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from omlab_segmentation.lattice import Lattice, Places
from omlab_segmentation.surfels import areas

#: Places of a label map, and elements, that are looked at together: they stay in the processor's cache.
_PLACES = 1 << 16
_ELEMENTS = 1 << 15
#: Places around an element that are looked at in any case: itself, then as many at a time as have a face or an edge in
#: common with it where voxels are cubes.
_CLOSE = (1, 6, 12)
#: Least share of elements that must find something for places twice as far off to be looked at too.
_SHARE = 0.1
#: Places that are looked at together where few elements are left.
_GATHERED = 1 << 18
#: Questions to a tree that one thread answers sooner than several are started.
_ALONE = 20_000


@attrs.frozen(eq=False)
class Surface:
    """Surface elements of all structures of a label map, ordered by label.

    Attributes
    ----------
    lattice : on which they lie.
    labels : [n] the structure of each.
    places : [n] where it is.
    sizes : [n] what it weighs: its area (3D, mm^2) or length (2D, mm), 1 for voxels.
    layers : arrays of the lattice's size with the labels at each place, 0 for none; as many as a place has labels.
    starts : [greatest label + 2] number of the first element of each label.
    """

    lattice: Lattice
    labels: NDArray[Any]
    places: Places
    sizes: NDArray[np.float64]
    layers: tuple[NDArray[Any], ...]
    starts: Places

    @classmethod
    def ordered(
        cls, lattice: Lattice, labels: NDArray[Any], places: Places, sizes: NDArray[np.float64] | None,
        layers: tuple[NDArray[Any], ...],
    ) -> Surface:  # fmt: skip
        """Of elements in any order; each weighs 1 without ``sizes``."""
        order = np.argsort(labels, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(labels)))
        sizes = np.ones(len(order)) if sizes is None else sizes[order]
        return cls(lattice, labels[order], places[order], sizes, layers, starts)

    def of(self, label: int) -> slice:
        """Elements of a structure, none where it has no voxel."""
        if label + 1 >= len(self.starts):
            return slice(0, 0)
        return slice(int(self.starts[label]), int(self.starts[label + 1]))

    def counts(self) -> Places:
        """[greatest label + 1] elements of each label."""
        return np.diff(self.starts)


def voxels(labels: NDArray[Any], lattice: Lattice) -> Surface:
    """Voxels with a face neighbour of another label; outside of the array is background (0).

    Parameters
    ----------
    labels : of a map, at the places of ``lattice``.
    """
    layer = np.zeros_like(labels)
    steps = lattice.strides.tolist()
    found = []
    for start, stop in _parts(lattice):
        own = labels[start:stop]
        edge = np.zeros(stop - start, bool)
        for step in steps:
            edge |= labels[start + step : stop + step] != own
            edge |= labels[start - step : stop - step] != own
        edge &= own != 0
        found.append(np.flatnonzero(edge) + start)
    places = np.concatenate(found)
    values = labels[places]
    layer[places] = values
    return Surface.ordered(lattice, values, places, None, (layer,))


def elements(labels: NDArray[Any], lattice: Lattice) -> Surface:
    """Surface elements (:mod:`omlab_segmentation.surfels`) of the corners between voxels.

    Parameters
    ----------
    labels : of a map, at the places of ``lattice``.
    """
    # The voxels around a corner, the one at the corner's own place last, as the code of a surface element numbers them.
    offsets = [int(np.dot(corner, lattice.strides)) for corner in product((-1, 0), repeat=len(lattice.shape))]
    found = []
    for start, stop in _parts(lattice):
        own = labels[start:stop]
        mixed = np.zeros(stop - start, bool)
        for offset in offsets[:-1]:
            mixed |= labels[start + offset : stop + offset] != own
        found.append(np.flatnonzero(mixed) + start)
    places = np.concatenate(found)
    around = np.stack([labels.take(places + offset) for offset in offsets])
    table = areas(lattice.spacing)
    layers, values, where, sizes = [], [], [], []
    while len(places):
        # The greatest label of each corner; once it is seen it is taken away.
        value = around.max(axis=0)
        inside = around == value
        code = np.zeros(len(places), np.uint8)
        for part in inside:
            code <<= 1
            code |= part
        layer = np.zeros_like(labels)
        layer[places] = value
        layers.append(layer)
        values.append(value)
        where.append(places)
        sizes.append(table.take(code))
        around[inside] = 0
        left = np.flatnonzero(around.any(axis=0))
        places, around = places[left], around.take(left, axis=1)
    if not layers:
        return Surface.ordered(lattice, labels[:0], places, None, (np.zeros_like(labels),))
    every = (np.concatenate(parts) for parts in (values, where, sizes))
    return Surface.ordered(lattice, *every, tuple(layers))


def _parts(lattice: Lattice) -> Iterator[tuple[int, int]]:
    last = lattice.size - lattice.margin
    for start in range(lattice.margin, last, _PLACES):
        yield start, min(last, start + _PLACES)


def distances(surface: Surface, other: Surface) -> NDArray[np.float64]:
    """Distance [n] in mm of every element of ``surface`` to the nearest one of the same structure in ``other``, of one
    lattice; infinite where that has none.

    Surfaces of two outlines of one structure mostly coincide or lie a few voxels apart. So the places around each
    element are looked up, the nearest first, and a tree is asked only for those that are still alone then.
    """
    found = np.full(len(surface.labels), np.inf)
    known = np.zeros(max(len(surface.starts), len(other.starts)) - 1, bool)
    known[np.flatnonzero(other.counts())] = True
    asked = np.flatnonzero(known[surface.labels])
    parts = [
        _close(surface, other, asked[start : start + _ELEMENTS], found) for start in range(0, len(asked), _ELEMENTS)
    ]
    left = np.concatenate([asked[:0], *parts])
    first, many = sum(_CLOSE), 2 * _CLOSE[-1]
    while first < len(surface.lattice.jumps) and len(left):
        jumps = slice(first, first + many)
        before, step = len(left), max(1, _GATHERED // many)
        parts = [_around(surface, other, left[n : n + step], jumps, found) for n in range(0, len(left), step)]
        left = np.concatenate(parts)
        # Most are found at once or close by. Where hardly any are, the rest is far away.
        if len(left) > (1 - _SHARE) * before:
            break
        first, many = first + many, 2 * many
    _far(surface, other, left, found)
    return found


def _close(surface: Surface, other: Surface, alone: Places, found: NDArray[np.float64]) -> Places:
    """Write the distances of the elements numbered ``alone`` that find one close by into ``found``; the others.
    A step at a time for all elements."""
    lattice = surface.lattice
    first = 0
    for many in _CLOSE:
        if not len(alone):
            break
        steps = range(min(len(lattice.jumps), first + many) - 1, first - 1, -1)
        places, labels = surface.places[alone] - lattice.margin, surface.labels[alone]
        nearest = np.full(len(alone), np.inf)
        # The nearest is written last.
        for step in steps:
            start = lattice.margin + int(lattice.jumps[step])
            for layer in other.layers:
                there = layer[start:].take(places, mode="clip") == labels
                np.copyto(nearest, lattice.lengths[step], where=there)
        found[alone] = nearest
        alone = alone[np.isinf(nearest)]
        first += many
    return alone


def _around(
    surface: Surface, other: Surface, alone: Places, jumps: slice, found: NDArray[np.float64]
) -> Places:  # fmt: skip
    """The same for some steps, all at a time."""
    lattice = surface.lattice
    places, labels = surface.places[alone], surface.labels[alone, None]
    looked = places[:, None] + lattice.jumps[jumps]
    there = other.layers[0].take(looked) == labels
    for layer in other.layers[1:]:
        there |= layer.take(looked) == labels
    first = there.argmax(axis=1)
    near = there[np.arange(len(first)), first]
    found[alone[near]] = lattice.lengths[jumps][first[near]]
    return alone[~near]


def _far(surface: Surface, other: Surface, alone: Places, found: NDArray[np.float64]) -> None:
    """The same by trees of the other surface, one for each structure; none is left."""
    lattice = surface.lattice
    scale = np.asarray(lattice.spacing)
    for label in np.flatnonzero(np.bincount(surface.labels[alone])).tolist():
        asked = alone[surface.labels[alone] == label]
        # Unbalanced trees of large leaves are quicker to build for points on a grid, and the answer is the same.
        targets = lattice.indices(other.places[other.of(label)]) * scale
        tree = cKDTree(targets, leafsize=32, balanced_tree=False, compact_nodes=False)
        points = lattice.indices(surface.places[asked]) * scale
        found[asked] = tree.query(points, workers=-1 if len(asked) > _ALONE else 1)[0]


def content(*labels: NDArray[Any]) -> tuple[slice, ...]:
    """Box of all that is not background in label maps of one shape; empty if nothing is. Nothing beyond it changes a
    surface within."""
    box = []
    for axis in range(labels[0].ndim):
        others = tuple(d for d in range(labels[0].ndim) if d != axis)
        used = np.flatnonzero(np.logical_or.reduce([given.any(axis=others) for given in labels]))
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
    return tuple(box)
