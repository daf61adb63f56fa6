"""Where the frames of a DICOM SEG lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omlab.cases.dicom_series import LPS_TO_RAS
from omlab.errors import InputError
from omlab.geometry import Geometry

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

#: Frames may lie this share of their distance off an even grid.
_UNEVEN = 0.1


def grid_of(dataset: Dataset, name: str) -> tuple[Geometry | None, list[int]]:
    """The grid that holds every frame, and the slice at which each lies; no grid where frames have no place.

    Several frames may lie at one slice (a segment each), and slices may be missing (left out when empty).

    Raises
    ------
    omlab.errors.InputError
        Orientations differ, or positions do not lie on an even grid.
    """
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [shared]

    def value(group: Any, sequence: str, keyword: str) -> Any:
        for owner in (group, shared):
            items = owner.get(sequence) if owner is not None else None
            if items and keyword in items[0]:
                return items[0].get(keyword)
        return None

    positions = [value(group, "PlanePositionSequence", "ImagePositionPatient") for group in groups]
    if any(position is None for position in positions):
        frames = int(dataset.get("NumberOfFrames", 1))
        return None, [0] * frames
    orientations = {
        tuple(map(float, value(g, "PlaneOrientationSequence", "ImageOrientationPatient") or ())) for g in groups
    }
    if len(orientations) != 1 or len(next(iter(orientations))) != 6:
        raise InputError(f"{name}: its frames have {len(orientations)} orientations, expected one")
    row, column = np.array(orientations.pop()).reshape(2, 3)
    normal = np.cross(row, column)
    points = np.array([[float(v) for v in position] for position in positions])
    heights = points @ normal
    levels = np.unique(heights.round(3))
    spacing = value(groups[0], "PixelMeasuresSequence", "PixelSpacing")
    between = value(groups[0], "PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = value(groups[0], "PixelMeasuresSequence", "SliceThickness")
    gaps = np.diff(levels)
    if len(gaps):
        step = float(gaps.min())
        # The written distance is finer where every second slice was empty; it must fit what is there.
        if between and abs(step / float(between) - round(step / float(between))) < _UNEVEN and float(between) < step:
            step = float(between)
    else:
        step = float(between or thickness or 1.0)
    places = np.rint((heights - heights.min()) / step).astype(int)
    if np.abs((heights - heights.min()) - places * step).max(initial=0) > _UNEVEN * step:
        raise InputError(f"{name}: its frames do not lie on an even grid of {step:.3f} mm")
    first, last = int(places.argmin()), int(places.argmax())
    # Not along the normal where the gantry was tilted.
    along = (points[last] - points[first]) / places[last] if places[last] else normal * step
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * float(spacing[1]), column * float(spacing[0]), along, points[first]])
    shape = (int(dataset.Columns), int(dataset.Rows), int(places.max()) + 1)
    return Geometry(shape, LPS_TO_RAS @ affine), [int(place) for place in places]
