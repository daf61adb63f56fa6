"""Metrics of two binary masks, by their definitions; where libraries disagree the docstring says which one this equals.

A is the prediction, B the reference. Undefined values (0/0) are NaN and a distance to an empty set is infinite; nothing
is dropped or replaced silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab_segmentation import surfaces
from omlab_segmentation.surfaces import Elements, distances

Mask = NDArray[np.bool_]


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
    # A plane at a time stays in the processor's cache.
    for a, b in zip(prediction, reference, strict=True):
        flat_a, flat_b = a.ravel(), b.ravel()
        equal = flat_a[flat_a == flat_b]
        sums += [np.bincount(values, minlength=size) for values in (flat_a, flat_b, equal)]
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
    def between(cls, prediction: Elements, reference: Elements, spacing: Sequence[float]) -> Surfaces:
        """Of one structure's elements in two label maps of one shape."""
        a, b = prediction.places, reference.places
        return cls(distances(a, b, spacing), distances(b, a, spacing), prediction.sizes, reference.sizes)

    @classmethod
    def of_voxels(cls, prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Surfaces:
        """Between centres of surface voxels, each weighing the same."""
        return cls._of(prediction, reference, spacing, surfaces.voxels)

    @classmethod
    def of_surfels(cls, prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Surfaces:
        """Between surface elements, weighted by area."""
        return cls._of(prediction, reference, spacing, lambda mask: surfaces.elements(mask, spacing))

    @classmethod
    def _of(cls, prediction: Mask, reference: Mask, spacing: Sequence[float], find: Any) -> Surfaces:
        a, b = (surfaces.of(find(mask.view(np.uint8)), 1, mask.ndim) for mask in (prediction, reference))
        return cls.between(a, b, spacing)

    @property
    def empty(self) -> tuple[bool, bool]:
        """Has A no surface; has B none?"""
        return not len(self.from_prediction), not len(self.from_reference)


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
        return float(np.percentile(np.concatenate([surfaces.from_prediction, surfaces.from_reference]), percent))
    if rule == "surfel":
        return max(
            _by_area(surfaces.from_prediction, surfaces.weight_prediction, percent),
            _by_area(surfaces.from_reference, surfaces.weight_reference, percent),
        )
    return float(max(np.percentile(surfaces.from_prediction, percent), np.percentile(surfaces.from_reference, percent)))


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
