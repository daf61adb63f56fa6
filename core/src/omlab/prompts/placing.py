"""Prompts brought onto a case: coordinates on its grid, masks read, what does not fit refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from omlab.errors import InputError
from omlab.prompts.types import Box, Mask, Object, Point, Space

if TYPE_CHECKING:
    from omlab.cases import Case


def place(item: Object, case: Case) -> Object:
    """One object on the grid of ``case``: space ``grid``, masks read.

    Raises
    ------
    InputError
        Wrong number of coordinates, a place outside of the case, a mask on another grid, millimetres for a case that
        does not lie in a patient.
    """
    from omlab.cases import Image, Slide, Volume

    if item.space is Space.UM and not isinstance(case, Slide) and (item.points or item.boxes):
        raise InputError(
            f"{case.name}: is no whole slide, prompts in micrometres are for these",
            remedy='Give pixels and "space": "grid"',
        )
    if isinstance(case, Volume):
        shape: tuple[int, ...] = case.voxels.shape[:3]
        names = "i, j, k" if item.space is Space.GRID else "x, y, z"
    elif isinstance(case, Image):
        shape = (case.pixels.shape[1], case.pixels.shape[0])
        names = "x, y"
        if item.space is not Space.GRID and (item.points or item.boxes):
            raise InputError(
                f"{case.name}: is a picture, prompts in millimetres ({item.space}) need a volume",
                remedy='Give pixels and "space": "grid"',
            )
    elif isinstance(case, Slide):
        shape, names = case.size, "x, y"
        if item.space not in (Space.GRID, Space.UM) and (item.points or item.boxes):
            raise InputError(
                f"{case.name}: is a slide, prompts in millimetres ({item.space}) need a volume",
                remedy='Give micrometres and "space": "um", or pixels of level 0 and "space": "grid"',
            )
        if item.mask is not None:
            raise InputError(f"{case.name}: is a slide, masks are for pictures and volumes", remedy="Give boxes")
    else:
        raise InputError(f"{case.name}: is of kind {case.kind}, prompts are for pictures, slides and volumes")
    for place in (*(p.at for p in item.points), *(b.low for b in item.boxes)):
        if len(place) != len(shape):
            shown = ", ".join(f"{v:g}" for v in place)
            raise InputError(
                f"{case.name}: a prompt of '{item.label}' has {len(place)} coordinates ({shown}), "
                f"{len(shape)} were expected ({names})"
            )
    return attrs.evolve(
        item, space=Space.GRID, points=[_point_on(p, item, case, shape) for p in item.points],
        boxes=[_box_on(b, item, case, shape) for b in item.boxes], mask=_mask_on(item, case),
    )  # fmt: skip


def _to_grid(places: Sequence[tuple[float, ...]], space: Space, case: Any) -> list[tuple[float, ...]]:
    if space is Space.GRID:
        return list(places)
    if space is Space.UM:
        return [tuple(row) for row in case.to_pixels(places).tolist()]
    flip = (-1.0, -1.0, 1.0) if space is Space.LPS_MM else (1.0, 1.0, 1.0)
    ras = [[v * f for v, f in zip(place, flip, strict=True)] for place in places]
    return [tuple(row) for row in case.geometry.to_voxel(ras).tolist()]


def _point_on(point: Point, item: Object, case: Case, shape: tuple[int, ...]) -> Point:
    (place,) = _to_grid([point.at], item.space, case)
    # A pixel reaches half a pixel around its centre.
    if any(not -0.5 <= v <= n - 0.5 for v, n in zip(place, shape, strict=True)):
        raise InputError(f"{case.name}: the point {_shown(place, point.at)} of '{item.label}' {_outside(shape)}")
    return Point(place, point.positive)


def _box_on(box: Box, item: Object, case: Case, shape: tuple[int, ...]) -> Box:
    if item.space is not Space.GRID:
        # The grid may be turned in the patient: the smallest box on the grid around all corners.
        ends = (box.low, box.high)
        count = len(shape)
        corners = [tuple(ends[(n >> axis) & 1][axis] for axis in range(count)) for n in range(2**count)]
        placed = _to_grid(corners, item.space, case)
        box = Box([min(column) for column in zip(*placed, strict=True)], [max(c) for c in zip(*placed, strict=True)])
    # What reaches over the edge is cut: an end may be one past the last pixel, as one past the end is in Python.
    low = tuple(max(0.0, v) for v in box.low)
    high = tuple(min(float(n), v) for v, n in zip(box.high, shape, strict=True))
    flat = len(shape) == 2  # a box of a volume may lie in one slice, one of a picture must hold something
    if any(b < 0 or a > n - 1 or (flat and b <= a) for a, b, n in zip(low, high, shape, strict=True)):
        shown = f"{_shown(box.low, box.low)} to {_shown(box.high, box.high)}"
        raise InputError(f"{case.name}: the box {shown} of '{item.label}' {_outside(shape)}")
    return Box(low, high)


def _outside(shape: tuple[int, ...]) -> str:
    return f"lies outside of the {' x '.join(map(str, shape))} {'pixels' if len(shape) == 2 else 'voxels'}"


def _shown(place: Sequence[float], given: Sequence[float]) -> str:
    text = "(" + ", ".join(f"{v:.4g}" for v in place) + ")"
    if tuple(place) != tuple(given):
        text += " [given as " + ", ".join(f"{v:g}" for v in given) + f" {'mm' if len(given) == 3 else 'micrometres'}]"
    return text


def _mask_on(item: Object, case: Any) -> Mask | None:
    from omlab.cases import Volume

    mask = item.mask
    if mask is None:
        return None
    volume = isinstance(case, Volume)
    shape = case.voxels.shape[:3] if volume else case.pixels.shape[:2]
    what = f"the mask of '{item.label}'"
    array = mask.array
    if array is None:
        from omlab.results import read_segmentation

        assert mask.path is not None
        if not mask.path.is_file():
            raise InputError(f"{mask.path}: does not exist, {what} was expected there")
        found = read_segmentation(mask.path)
        array = found.labels != 0 if mask.value is None else found.labels == mask.value
        what = f"{mask.path.name}, {what},"
        if (
            volume
            and found.geometry is not None
            and array.shape == shape
            and not found.geometry.same_grid(case.geometry)
        ):
            raise InputError(f"{case.name}: {what} lies elsewhere in the patient", remedy="Resample it onto the case")
    if array.shape != shape:
        raise InputError(
            f"{case.name}: {what} has the shape {' x '.join(map(str, array.shape))}, the case has "
            f"{' x '.join(map(str, shape))}"
        )
    if not array.any():
        value = "" if mask.value is None else f" of value {mask.value}"
        raise InputError(f"{case.name}: {what} is empty: no pixel{value}")
    return attrs.evolve(mask, array=array)
