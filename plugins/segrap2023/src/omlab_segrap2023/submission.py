"""The challenge's submission: one 4-D MetaImage a patient, a channel a structure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omlab.errors import OutputError, UsageError
from omlab.files import whole
from omlab.geometry import Geometry
from omlab_segrap2023.structures import TASKS, mask

#: Task -> name that the challenge's interface has for the output.
OUTPUTS = {"oar": "head-neck-segmentation", "gtv": "gross-tumor-volume-segmentation"}


def write_fused(labels: NDArray[np.unsignedinteger], geometry: Geometry, path: Path, task: str = "oar") -> None:
    """Write a fused label map [i, j, k] as a submission: [45 or 2, z, y, x], a channel a structure in the task's order.

    Raises
    ------
    omlab.errors.InputError, omlab.errors.OutputError
        The map has values that the task has not; the file cannot be written.
    """
    write(((mask(labels, name, task)) for name in TASKS[task]), geometry, path, task)


def write(masks: Iterable[NDArray[np.bool_]], geometry: Geometry, path: Path, task: str = "oar") -> None:
    """Write masks [i, j, k], one a structure in the order of the task, as they come: only one is in memory.

    Parameters
    ----------
    path : ends in ``.mha``.

    Raises
    ------
    omlab.errors.UsageError
        Not as many masks as structures, or one of another shape than the grid.
    omlab.errors.OutputError
        The file cannot be written.
    """
    count = len(TASKS[task])
    packer = zlib.compressobj(6)
    packed = written = 0
    try:
        with whole(path) as temporary, open(temporary, "wb") as file:
            head = _header(geometry, count)
            # The size of what follows is known only at the end: room for its digits is left, blanks are allowed there.
            place = len(head) + len(b"CompressedDataSize = ")
            file.write(head + b"CompressedDataSize = " + b" " * 20 + b"\nElementDataFile = LOCAL\n")
            for found in masks:
                if found.shape != geometry.shape:
                    raise UsageError(f"a mask has the shape {found.shape}, the scan {geometry.shape}")
                written += 1
                # x runs fastest in the file; i, j, k are x, y, z of the file that the scan was read from.
                packed += file.write(packer.compress(np.asarray(found, np.uint8).tobytes(order="F")))
            packed += file.write(packer.flush())
            file.seek(place)
            file.write(str(packed).encode())
            if written != count:
                raise UsageError(f"{written} masks were given, task '{task}' has {count} structures")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def _header(geometry: Geometry, count: int) -> bytes:
    # MetaImage is in LPS, and lists an axis' direction a row.
    flip = np.array([-1.0, -1.0, 1.0])
    spacing = geometry.spacing_mm
    directions = (geometry.affine[:3, :3] / np.array(spacing)).T * flip
    matrix = np.eye(4)
    matrix[:3, :3] = directions
    origin = [*(geometry.affine[:3, 3] * flip), 0.0]
    lines = {
        "ObjectType": "Image", "NDims": "4", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True", "TransformMatrix": _numbers(matrix.ravel()), "Offset": _numbers(origin),
        "CenterOfRotation": "0 0 0 0", "ElementSpacing": _numbers([*spacing, 1.0]),
        "DimSize": " ".join(str(n) for n in (*geometry.shape, count)), "ElementType": "MET_UCHAR",
    }  # fmt: skip
    return "".join(f"{key} = {value}\n" for key, value in lines.items()).encode()


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{float(value) + 0.0:.17g}" for value in values)
