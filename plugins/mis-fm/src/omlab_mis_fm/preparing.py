"""Scans to the sub-volumes that Volume Fusion takes its parts from, as upstream prepares LUNA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab_mis_fm.fusion import clip_ct

#: Voxels above are of the body, in Hounsfield units.
BODY_HU = -600.0
#: Share of the slices in which a place of the slice is of the body.
SHARE = 0.6
#: (D, H, W) of a sub-volume; they begin so many voxels apart.
SIZE, STRIDE = (96, 192, 192), 96


def body_box(volume: NDArray[Any]) -> tuple[slice, slice]:
    """Rows and columns of [D, H, W] Hounsfield units in which the body lies: places that are of it in most slices,
    opened, their largest component. All of them where there is none."""
    from scipy import ndimage

    often = (volume > BODY_HU).mean(axis=0) > SHARE
    parts, count = ndimage.label(ndimage.binary_opening(often))
    if not count:
        return slice(0, volume.shape[1]), slice(0, volume.shape[2])
    rows, columns = ndimage.find_objects(parts)[int(np.bincount(parts.ravel())[1:].argmax())]
    return rows, columns


def sub_volumes(
    volume: NDArray[Any], size: Sequence[int] = SIZE, stride: int = STRIDE
) -> Iterator[NDArray[np.float32]]:
    """[1, *size] each, in -1..1, of a scan [D, H, W] in Hounsfield units: cut to the body, clipped, mirrored at its
    borders where it is smaller. The last one along an axis ends with the scan."""
    found = clip_ct(volume[(slice(None), *body_box(volume))])
    widths = [(max(0, n - m) // 2, max(0, n - m) - max(0, n - m) // 2) for n, m in zip(size, found.shape, strict=True)]
    if any(map(any, widths)):
        found = np.pad(found, widths, mode="reflect")
    starts = [
        [*range(0, m - n, stride), m - n]  # what is left over at the end is covered by one more
        for n, m in zip(size, found.shape, strict=True)
    ]
    for at in product(*starts):
        yield found[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))][None]
