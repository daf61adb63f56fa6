"""Training cubes out of a brain, without tracing: crops, first proposals of labels, contrast and histograms."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, require

#: Half the side of a cube around a centre, in voxels.
HALF = 75
#: Strength and reach, in voxels, of a weakening of contrast.
STRENGTH, RADIUS = 0.65, 25
#: OpenCV 5 takes pictures of up to 128 colours, OpenCV 4 of up to 512; each is blurred for itself.
_COLOURS = 64


def centres(path: str | Path) -> list[tuple[int, int, int]]:
    """Centres (slice, row, column) that were marked in ImageJ: a CSV with the columns X, Y and Slice.

    Raises
    ------
    omlab.errors.InputError
        The file has no such columns, or a value is no number.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no table of centres: {error}") from None
    if not rows or not {"X", "Y", "Slice"} <= set(rows[0]):
        raise InputError(f"{path}: has no rows with the columns X, Y and Slice", remedy="Save ImageJ's results as CSV")
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append((int(float(row["Slice"])), int(float(row["Y"])), int(float(row["X"]))))
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"{path}: line {number} has a centre that is no number") from None
    return found


def cropped(planes: Any, centre: Sequence[int], half: int = HALF, *, wrap: bool = False) -> NDArray[Any]:
    """The cube [z, y, x] of 2 ``half`` voxels a side around a centre (slice, row, column).

    Parameters
    ----------
    planes : [z, y, x]: an array, or a :class:`omlab.cases.stack.Stack`.
    wrap : planes before the first are taken from the end of the brain, as upstream has it. It mixes two places.

    Raises
    ------
    omlab.errors.InputError
        The cube reaches over the border.
    """
    size = planes.shape
    low = [int(c) - half for c in centre]
    high = [int(c) + half for c in centre]
    beyond = [n > s for n, s in zip(high, size, strict=True)]
    before = [n < 0 for n in low]
    if any(beyond) or any(before[1:]) or (before[0] and not wrap):
        raise InputError(
            f"the cube of {2 * half} voxels around slice {centre[0]}, row {centre[1]}, column {centre[2]} reaches over "
            f"the border of a brain of {size[0]} x {size[1]} x {size[2]}",
            remedy="Mark centres farther inside, or take smaller cubes",
        )
    wanted = [z % size[0] for z in range(low[0], high[0])]
    box = slice(low[1], high[1]), slice(low[2], high[2])
    return np.stack([np.asarray(planes[z])[box] for z in wanted])


def difference(cube: NDArray[Any]) -> NDArray[np.uint16]:
    """First proposal of a label: what is brighter than its surroundings; a person then chooses a threshold.

    The cube [z, y, x] minus its blur (3 x 3, sigma 10) along z and y, not x: upstream hands the volume to a function
    for pictures, which takes x for colours. Negative values become 0.
    """
    cv2 = require("cv2", needed_for="proposing labels", install="omlab-axon-seg[prepare]")
    values = np.asarray(cube, np.float64)
    blurred = np.empty_like(values)
    for start in range(0, values.shape[2], _COLOURS):
        part = np.ascontiguousarray(values[:, :, start : start + _COLOURS])
        blurred[:, :, start : start + _COLOURS] = cv2.GaussianBlur(part, (3, 3), 10).reshape(part.shape)
    return np.maximum(values - blurred, 0).astype(np.uint16)


def matched(cube: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """The cube with the histogram of another one."""
    from skimage.exposure import match_histograms

    return np.asarray(match_histograms(cube, reference), np.float64)


def weakened(
    cube: NDArray[Any], middles: Iterable[Sequence[int]], *, radius: int = RADIUS, strength: float = STRENGTH,
    as_published: bool = True,
) -> NDArray[Any]:  # fmt: skip
    """Contrast taken out around some places: values go towards the mean of their surroundings, most at the middle.

    Parameters
    ----------
    cube : [z, y, x]; on whole numbers the result is cut to whole numbers.
    as_published : along x the cube around a middle is placed by its second coordinate, as upstream has it.
    """
    found = np.array(cube)
    for middle in middles:
        at = (middle[0], middle[1], middle[1] if as_published else middle[2])
        low = [max(0, int(c) - radius) for c in at]
        high = [min(n, int(c) + radius) for c, n in zip(at, found.shape, strict=True)]
        if any(b <= a for a, b in zip(low, high, strict=True)):
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[tuple(slice(a - int(c), b - int(c)) for a, b, c in zip(low, high, at, strict=True))]
        distance = np.sqrt(sum(axis.astype(np.float64) ** 2 for axis in axes))
        share = (1 - np.minimum(distance, radius) / radius) * strength
        values = found[box].astype(np.float64)
        found[box] = values + share * (values.mean() - values)
    return found
