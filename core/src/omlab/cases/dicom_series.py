"""From DICOM slices to a grid: which files belong together, in which order, and where they lie.

Positions decide, never file names, instance numbers or SliceThickness. Everything that would make a volume silently
wrong is an error that says which files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError

#: Positions closer than this are the same, in mm.
SAME_MM = 0.005
#: Slices may lie this share of their distance off their place; scanners round positions.
UNEVEN = 0.02
#: DICOM is LPS+, omlab RAS+.
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@attrs.frozen(eq=False)
class Slice:
    """What of one slice decides its place.

    Attributes
    ----------
    position : ImagePositionPatient, LPS+ mm: the centre of the first voxel.
    row, column : directions in which the column index and the row index grow (ImageOrientationPatient).
    spacing : (between rows, between columns) in mm, as PixelSpacing has it.
    """

    path: Path
    frame: int
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    shape: tuple[int, int]


@attrs.frozen(eq=False)
class Grid:
    """Slices in order, with the affine (voxel [column, row, slice] to RAS+ mm) and what is worth telling."""

    slices: tuple[Slice, ...]
    affine: NDArray[np.float64]
    tilt_degrees: float
    notes: tuple[str, ...]


def numbers(dataset: Any, keyword: str, count: int, name: str) -> tuple[float, ...]:
    """``count`` finite numbers of an attribute. Raises :class:`omlab.errors.InputError`."""
    value = getattr(dataset, keyword, None)
    try:
        found = tuple(map(float, value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{name}: has no usable {keyword}, so its place in the patient is unknown") from None
    if len(found) != count or not all(map(isfinite, found)):
        raise InputError(f"{name}: its {keyword} is {value}, expected {count} numbers")
    return found


@lru_cache(maxsize=64)
def directions(orientation: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors in which the column index and the row index grow; nearly all slices of a series share them.

    Raises ``ValueError`` where they are no two directions at right angles.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-2 or abs(lengths[1] - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise ValueError(f"{list(orientation)} are no two directions at right angles")
    return row / lengths[0], column / lengths[1]


def slice_of(
    dataset: Any, path: Path, *, frame: int = 0, plane: Any = None, pixels: Any = None, turn: Any = None
) -> Slice:
    """The place of a slice, from a data set or from the functional groups of one of its frames.

    Raises
    ------
    omlab.errors.InputError
        An attribute that decides it is missing or makes no sense.
    """
    name = path.name
    try:
        row, column = directions(numbers(turn if turn is not None else dataset, "ImageOrientationPatient", 6, name))
    except ValueError as error:
        raise InputError(f"{name}: its ImageOrientationPatient is unusable: {error}") from None
    spacing = numbers(pixels if pixels is not None else dataset, "PixelSpacing", 2, name)
    if min(spacing) <= 0:
        raise InputError(f"{name}: its PixelSpacing is {list(spacing)}, expected two positive numbers of mm")
    position = np.array(numbers(plane if plane is not None else dataset, "ImagePositionPatient", 3, name))
    return Slice(
        path, frame, position, row, column, (spacing[0], spacing[1]), (int(dataset.Rows), int(dataset.Columns))
    )


def arrange(slices: Sequence[Slice], what: str, *, thickness: float | None = None) -> Grid:
    """Sort slices along their normal and find the grid they lie on.

    Raises
    ------
    omlab.errors.InputError
        Slices differ in size, spacing or direction; two lie at one place; one is missing.
    """
    first = slices[0]
    for other in slices[1:]:
        if other.shape != first.shape:
            raise InputError(
                f"{what}: its slices differ in size: {first.path.name} has {first.shape[0]} x {first.shape[1]} pixels, "
                f"{other.path.name} {other.shape[0]} x {other.shape[1]}",
                remedy="A localiser may be among them: move it away, or choose with --series",
            )
        if other.spacing != first.spacing and not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"{what}: its slices differ in spacing: {first.path.name} has {first.spacing} mm, "
                f"{other.path.name} {other.spacing} mm"
            )
        if other.row is first.row and other.column is first.column:
            continue
        if not (np.allclose(other.row, first.row, atol=1e-3) and np.allclose(other.column, first.column, atol=1e-3)):
            raise InputError(
                f"{what}: its slices point in different directions, first {first.path.name} and {other.path.name}",
                remedy="A localiser or another reconstruction may be among them: move it away",
            )
    normal = np.cross(first.row, first.column)
    order = sorted(slices, key=lambda s: float(s.position @ normal))
    heights = np.array([s.position @ normal for s in order])
    step, tilt, notes = _step(order, heights, normal, what, thickness)
    affine = np.eye(4)
    affine[:3, 0] = _TO_RAS @ first.row * first.spacing[1]
    affine[:3, 1] = _TO_RAS @ first.column * first.spacing[0]
    affine[:3, 2] = _TO_RAS @ step
    affine[:3, 3] = _TO_RAS @ order[0].position
    return Grid(tuple(order), affine, tilt, notes)


def _step(
    order: Sequence[Slice],
    heights: NDArray[np.float64],
    normal: NDArray[np.float64],
    what: str,
    thickness: float | None,
) -> tuple[NDArray[np.float64], float, tuple[str, ...]]:
    """Vector from slice to slice (LPS+ mm), the gantry tilt in degrees, and notes."""
    if len(order) == 1:
        return normal * (thickness or 1.0), 0.0, ()
    gaps = np.diff(heights)
    same = np.flatnonzero(gaps < SAME_MM)
    if len(same):
        pair = (order[same[0]], order[same[0] + 1])
        raise InputError(
            f"{what}: {len(same) + 1} slices lie at the same place, {_called(pair[0])} and {_called(pair[1])} at "
            f"{heights[same[0]]:.2f} mm",
            remedy="Are there several echoes, phases or copies? Move one set away",
        )
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > usual * 1.5)
    if len(wide):
        missing = int(sum(round(gaps[w] / usual) - 1 for w in wide))
        raise InputError(
            f"{what}: {missing} {'slice is' if missing == 1 else 'slices are'} missing between "
            f"{_called(order[wide[0]])} and {_called(order[wide[0] + 1])}, "
            f"at {heights[wide[0]]:.2f} and {heights[wide[0] + 1]:.2f} mm; slices are {usual:.3g} mm apart elsewhere",
            remedy="Export the series again, whole",
        )
    step = (order[-1].position - order[0].position) / (len(order) - 1)
    places = order[0].position + np.arange(len(order))[:, None] * step
    off = np.linalg.norm(np.array([s.position for s in order]) - places, axis=1)
    if off.max() > max(0.1 * usual, 0.05):
        worst = int(off.argmax())
        raise InputError(
            f"{what}: its slices are not evenly spaced, {_called(order[worst])} lies {off[worst]:.2f} mm off its place",
            remedy="Resample it to even slices first; omlab never does so silently",
        )
    notes = []
    if off.max() > max(UNEVEN * usual, 0.05):
        notes.append(f"slices lie up to {off.max():.2f} mm off even places")
    direction = step / np.linalg.norm(step)
    tilt = float(np.degrees(np.arccos(np.clip(abs(direction @ normal), -1, 1))))
    if tilt > 0.05:
        notes.append(f"the gantry was tilted by {tilt:.1f} degrees; the shear is kept in the geometry")
    return step, tilt, tuple(notes)


def _called(one: Slice) -> str:
    return f"{one.path.name} frame {one.frame}" if one.frame else one.path.name
