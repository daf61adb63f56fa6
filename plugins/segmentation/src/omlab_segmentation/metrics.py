"""Metrics of two binary masks, by their definitions; where libraries disagree the docstring says which one this equals.

A is the prediction, B the reference. Undefined values (0/0) are NaN and a distance to an empty set is infinite; nothing
is dropped or replaced silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab_segmentation import surfaces
from omlab_segmentation.lattice import Lattice
from omlab_segmentation.surfaces import Surface, distances

Mask = NDArray[np.bool_]
#: Voxels that are counted together: they stay in the processor's cache.
_VOXELS = 1 << 16
#: :func:`omlab_segmentation.surfaces.voxels` or :func:`omlab_segmentation.surfaces.elements`.
Finder = Callable[[NDArray[Any], Lattice], Surface]


@attrs.frozen
class Counts:
    """Voxels of A, of B and of both."""

    prediction: int
    reference: int
    both: int

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|); NaN if both are empty, 0 if one is."""
        total = self.prediction + self.reference
        return 2 * self.both / total if total else float("nan")

    @property
    def iou(self) -> float:
        """|A and B| / |A or B|; NaN if both are empty, 0 if one is."""
        union = self.prediction + self.reference - self.both
        return self.both / union if union else float("nan")


def joint_counts(prediction: NDArray[np.integer], reference: NDArray[np.integer]) -> dict[int, Counts]:
    """Counts of every label but 0 that occurs in one of two label maps of one shape, ascending, in one pass over the
    voxels."""
    size = int(max(prediction.max(initial=0), reference.max(initial=0))) + 1
    sums = np.zeros((3, size), np.int64)
    all_a, all_b = prediction.reshape(-1), reference.reshape(-1)
    for start in range(0, len(all_a), _VOXELS):
        a, b = all_a[start : start + _VOXELS], all_b[start : start + _VOXELS]
        # Most voxels are background on both sides.
        used = np.flatnonzero(a | b)
        a, b = a.take(used), b.take(used)
        sums += [np.bincount(values, minlength=size) for values in (a, b, a.take(np.flatnonzero(a == b)))]
    there = np.flatnonzero(sums[:2].any(axis=0))
    return {int(v): Counts(*(int(n) for n in sums[:, v])) for v in there if v}


@attrs.frozen(eq=False)
class Surfaces:
    """Distances between the surfaces of A and B, both ways, and the weight of each element."""

    from_prediction: NDArray[np.float64]
    from_reference: NDArray[np.float64]
    weight_prediction: NDArray[np.float64]
    weight_reference: NDArray[np.float64]

    @classmethod
    def of_voxels(cls, prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Surfaces:
        """Between centres of surface voxels, each weighing the same."""
        return Between.of(prediction.view(np.uint8), reference.view(np.uint8), spacing, surfaces.voxels)[1]

    @classmethod
    def of_surfels(cls, prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Surfaces:
        """Between surface elements, weighted by area."""
        return Between.of(prediction.view(np.uint8), reference.view(np.uint8), spacing, surfaces.elements)[1]

    @property
    def empty(self) -> tuple[bool, bool]:
        """Has A no surface; has B none?"""
        return not len(self.from_prediction), not len(self.from_reference)


@attrs.frozen(eq=False)
class Between:
    """Distances between the surfaces of all structures of two label maps of one shape, ``[label]`` for those of one."""

    prediction: Surface
    reference: Surface
    from_prediction: NDArray[np.float64]
    from_reference: NDArray[np.float64]

    @classmethod
    def of(
        cls, prediction: NDArray[Any], reference: NDArray[Any], spacing: Sequence[float], find: Finder,
    ) -> Between:  # fmt: skip
        """Of label maps; ``find`` says what their surface is."""
        lattice = Lattice.of(prediction.shape, spacing)
        return cls.on(lattice, lattice.filled(prediction), lattice.filled(reference), find)

    @classmethod
    def on(cls, lattice: Lattice, prediction: NDArray[Any], reference: NDArray[Any], find: Finder) -> Between:
        """Of label maps at the places of a lattice."""
        a, b = find(prediction, lattice), find(reference, lattice)
        return cls(a, b, distances(a, b), distances(b, a))

    def __getitem__(self, label: int) -> Surfaces:
        a, b = self.prediction.of(label), self.reference.of(label)
        return Surfaces(
            self.from_prediction[a], self.from_reference[b], self.prediction.sizes[a], self.reference.sizes[b]
        )


def hausdorff(surfaces: Surfaces, percent: float = 95.0, *, rule: str = "definition") -> float:
    """Percentile Hausdorff distance in mm; ``percent=100`` is the Hausdorff distance itself.

    Parameters
    ----------
    rule : ``"definition"``: the greater of the two directed percentiles, interpolated linearly (equals MONAI on voxel
        surfaces). ``"surfel"``: the greater of the two directed percentiles by area, not interpolated (equals
        surface-distance, on surfels). ``"pooled"``: one percentile of the distances of both directions (equals MedPy).

    Returns
    -------
    Infinite if one surface is empty, NaN if both are.
    """
    none_a, none_b = surfaces.empty
    if none_a or none_b:
        return float("nan") if none_a and none_b else float("inf")
    if rule == "pooled":
        return percentile(np.concatenate([surfaces.from_prediction, surfaces.from_reference]), percent)
    if rule == "surfel":
        return max(
            _by_area(surfaces.from_prediction, surfaces.weight_prediction, percent),
            _by_area(surfaces.from_reference, surfaces.weight_reference, percent),
        )
    return max(percentile(surfaces.from_prediction, percent), percentile(surfaces.from_reference, percent))


def percentile(values: NDArray[np.float64], percent: float) -> float:
    """As ``numpy.percentile`` interpolates it, without its checks, which take longer than the answer for few values."""
    place = percent / 100.0 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    found = np.partition(values, (low, high))
    return float(found[low] + (found[high] - found[low]) * (place - low))


def _by_area(distances: NDArray[np.float64], weights: NDArray[np.float64], percent: float) -> float:
    """First distance, in ascending order, at which the cumulated share of the area reaches ``percent``."""
    order = np.argsort(distances, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    index = min(int(np.searchsorted(share, percent / 100.0)), len(order) - 1)
    return float(distances[order[index]])


def surface_dice(surfaces: Surfaces, tolerance_mm: float) -> float:
    """Share of both surfaces (by the weights of ``surfaces``) that lies within ``tolerance_mm`` of the other one.

    On surfels this is the surface Dice of Nikolov et al. 2018, section 3.4 (equals surface-distance). 0 if one surface
    is empty, NaN if both are.
    """
    total = surfaces.weight_prediction.sum() + surfaces.weight_reference.sum()
    if not total:
        return float("nan")
    near = surfaces.weight_prediction[surfaces.from_prediction <= tolerance_mm].sum()
    near += surfaces.weight_reference[surfaces.from_reference <= tolerance_mm].sum()
    return float(near / total)


def average_surface_distance(surfaces: Surfaces) -> float:
    """Mean over the pooled distances of both directions in mm (equals MedPy 0.5 and MONAI on voxel surfaces); infinite
    if one surface is empty, NaN if both are."""
    none_a, none_b = surfaces.empty
    if none_a or none_b:
        return float("nan") if none_a and none_b else float("inf")
    return float(np.concatenate([surfaces.from_prediction, surfaces.from_reference]).mean())
