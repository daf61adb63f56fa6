"""Label maps as NIfTI-1 on the grid of the case."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from omlab.files import whole
from omlab.geometry import Geometry
from omlab.results.planes import slabs
from omlab.results.types import Label, Segmentation

#: Code of the extension that holds a comment.
COMMENT = 6
_CODES = {"uint8": 2, "uint16": 512, "int16": 4, "float32": 16, "uint32": 768}


def write_segmentation(result: Segmentation, path: Path) -> None:
    """Write the labels as ``.nii.gz``: uint8 where they fit, else uint16. A mask compresses to nothing at level 1."""
    labels = result.labels
    kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    assert result.geometry is not None
    write_array(
        labels.astype(kind, copy=False), result.geometry, path,
        intent=1002, description="labels by omlab", extension=_names(result),
    )  # fmt: skip


def _names(result: Segmentation) -> bytes:
    """Names and colours of the structures as a NIfTI comment (extension code 6), which other readers pass over."""
    structures = [
        {"value": label.value, "name": label.name, "colour": list(label.colour), "code": list(label.code or ())}
        for label in result.structures
    ]
    return json.dumps({"omlab_labels": structures}, ensure_ascii=False).encode()


def read_names(path: Path) -> tuple[Label, ...]:
    """The structures that :func:`write_segmentation` noted in a file; none where somebody else wrote it."""
    from omlab.cases.nifti import open_maybe_gzip

    with open_maybe_gzip(path) as file:
        raw = file.read(352)
        if len(raw) < 352 or raw[344:348] != b"n+1\0" or raw[348] == 0 or struct.unpack("<i", raw[:4])[0] != 348:
            return ()
        end = int(struct.unpack_from("<f", raw, 108)[0])
        extensions = file.read(max(0, min(end, 1 << 24) - 352))
    place = 0
    while place + 8 <= len(extensions):
        size, code = struct.unpack_from("<ii", extensions, place)
        if size < 16:
            return ()
        if code == COMMENT:
            try:
                noted = json.loads(extensions[place + 8 : place + size].rstrip(b"\0"))["omlab_labels"]
                return tuple(
                    Label(
                        value=int(n["value"]), name=str(n["name"]), colour=tuple(n["colour"]),
                        code=tuple(n["code"]) if len(n["code"]) == 3 else None,
                    )
                    for n in noted
                )  # fmt: skip
            except (ValueError, KeyError, TypeError):
                return ()  # somebody else's comment
        place += size
    return ()


def write_array(
    array: NDArray[np.generic],
    geometry: Geometry,
    path: Path,
    *,
    intent: int = 0,
    description: str = "",
    extension: bytes = b"",
) -> None:
    """Write [i, j, k] as ``.nii.gz``, whole or not at all.

    The affine goes into the sform as it is; the qform holds it too where it is a rotation with zooms, which a sheared
    grid is not.
    """
    with whole(path) as temporary, igzip.open(temporary, "wb", compresslevel=1) as file:
        file.write(header(array.dtype, geometry, intent=intent, description=description, extension=extension))
        for slab in slabs(array):
            file.write(slab)


def header(
    dtype: np.dtype, geometry: Geometry, *, intent: int = 0, description: str = "", extension: bytes = b""
) -> bytes:
    """All that comes before the voxels: 348 bytes, 4 that tell of extensions, and a comment if there is one."""
    padded = b""
    if extension:
        size = -(-(len(extension) + 8) // 16) * 16  # extensions come in multiples of 16 bytes
        padded = struct.pack("<ii", size, COMMENT) + extension.ljust(size - 8, b"\0")
    raw = bytearray(352)
    raw[348] = bool(padded)
    struct.pack_into("<i", raw, 0, 348)
    struct.pack_into("<8h", raw, 40, 3, *geometry.shape, 1, 1, 1, 1)
    struct.pack_into("<h", raw, 68, intent)
    struct.pack_into("<hh", raw, 70, _CODES[np.dtype(dtype).name], 8 * np.dtype(dtype).itemsize)
    struct.pack_into("<f", raw, 108, 352.0 + len(padded))
    struct.pack_into("<ff", raw, 112, 1.0, 0.0)
    raw[123] = 2  # millimetres
    raw[148:228] = description.encode("ascii", "replace")[:79].ljust(80, b"\0")
    quaternion = _quaternion(geometry)
    sign = 1.0
    if quaternion is not None:
        sign, b, c, d = quaternion
        struct.pack_into("<h", raw, 252, 1)
        struct.pack_into("<6f", raw, 256, b, c, d, *geometry.affine[:3, 3])
    struct.pack_into("<8f", raw, 76, sign, *geometry.spacing_mm, 0, 0, 0, 0)
    struct.pack_into("<h", raw, 254, 1)
    struct.pack_into("<12f", raw, 280, *geometry.affine[:3].ravel())
    raw[344:348] = b"n+1\0"
    return bytes(raw) + padded


def _quaternion(geometry: Geometry) -> tuple[float, float, float, float] | None:
    """(handedness, b, c, d) of the rotation in the affine; ``None`` where the columns are not at right angles."""
    columns = geometry.affine[:3, :3] / np.array(geometry.spacing_mm)
    if not np.allclose(columns.T @ columns, np.eye(3), atol=1e-5):
        return None
    sign = 1.0 if np.linalg.det(columns) > 0 else -1.0
    rotation = columns * [1.0, 1.0, sign]
    # The eigenvector of this symmetric matrix to its greatest eigenvalue is the quaternion (Bar-Itzhack 2000), right
    # for half turns too, where the usual formula divides by zero.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    b, c, d, a = np.linalg.eigh(matrix)[1][:, 3]
    if a < 0:
        b, c, d = -b, -c, -d
    return sign, float(b), float(c), float(d)
