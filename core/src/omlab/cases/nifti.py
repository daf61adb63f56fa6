"""NIfTI-1 and NIfTI-2, single files and pairs, compressed or not, read without a general-purpose library.

The header is 348 (540) bytes of fixed layout; what takes time is the voxels. They are decompressed by isal straight
into the array that the case keeps, so nothing is copied twice and float64 never appears unasked.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from omlab.cases.types import Source, Volume
from omlab.errors import InputError
from omlab.geometry import Geometry

#: NIfTI datatype code -> NumPy type. RGB, complex and 128-bit types are no scans and are refused.
DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
MAGICS = (b"n+1\0", b"ni1\0", b"n+2\0\r\n\032\n", b"ni2\0\r\n\032\n")
GZIP = b"\x1f\x8b"


@attrs.frozen(eq=False)
class Header:
    """What of a NIfTI header matters here.

    Attributes
    ----------
    shape : all dimensions, i first.
    affine : voxel to RAS+ mm by the rules of the standard: the sform if its code is set, else the qform, else zooms
        alone with the first axis flipped as readers agree on.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: NDArray[np.float64]
    zooms: tuple[float, ...]
    pair: bool
    sform_code: int
    qform_code: int


def open_maybe_gzip(path: Path) -> Any:
    """The file's content, decompressed if it is compressed."""
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP
    return igzip.open(path, "rb") if compressed else open(path, "rb")


def parse_header(raw: bytes, name: str) -> Header:
    """Raises :class:`omlab.errors.InputError` where it is no NIfTI header or makes no sense."""
    order = next((o for o in "<>" if len(raw) >= 4 and struct.unpack(o + "i", raw[:4])[0] in (348, 540)), None)
    if order is None:
        raise InputError(f"{name}: is no NIfTI file, its header does not begin with 348 or 540")
    if struct.unpack(order + "i", raw[:4])[0] == 348:
        if len(raw) < 348:
            raise InputError(f"{name}: is cut short, {len(raw)} bytes of a header of 348")
        dim = struct.unpack_from(order + "8h", raw, 40)
        code = struct.unpack_from(order + "h", raw, 70)[0]
        pixdim = struct.unpack_from(order + "8f", raw, 76)
        offset, slope, inter = struct.unpack_from(order + "3f", raw, 108)
        qcode, scode = struct.unpack_from(order + "2h", raw, 252)
        quaternion = struct.unpack_from(order + "6f", raw, 256)
        rows = struct.unpack_from(order + "12f", raw, 280)
        pair = raw[344:348] == b"ni1\0"
    else:
        if len(raw) < 540:
            raise InputError(f"{name}: is cut short, {len(raw)} bytes of a header of 540")
        code = struct.unpack_from(order + "h", raw, 12)[0]
        dim = struct.unpack_from(order + "8q", raw, 16)
        pixdim = struct.unpack_from(order + "8d", raw, 104)
        offset = struct.unpack_from(order + "q", raw, 168)[0]
        slope, inter = struct.unpack_from(order + "2d", raw, 176)
        qcode, scode = struct.unpack_from(order + "2i", raw, 344)
        quaternion = struct.unpack_from(order + "6d", raw, 352)
        rows = struct.unpack_from(order + "12d", raw, 400)
        pair = raw[4:8] == b"ni2\0"
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise InputError(f"{name}: its header names the dimensions {dim}, expected 1 to 7 positive ones")
    if code not in DTYPES:
        raise InputError(
            f"{name}: its voxels are of NIfTI datatype {code} (colour or complex), expected one number a voxel",
            remedy="Take one channel or the magnitude first",
        )
    if not np.isfinite(slope) or slope == 0:
        slope, inter = 1.0, 0.0
    shape = tuple(int(n) for n in dim[1 : dim[0] + 1])
    zooms = tuple(float(z) for z in pixdim[1 : dim[0] + 1])
    affine = _affine(scode, qcode, rows, quaternion, pixdim, shape)
    return Header(
        shape,
        np.dtype(order + DTYPES[code]),
        int(offset),
        float(slope),
        float(inter),
        affine,
        zooms,
        pair,
        scode,
        qcode,
    )


def _affine(
    scode: int, qcode: int, rows: tuple[float, ...], quaternion: tuple[float, ...], pixdim: Any, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    affine = np.eye(4)
    if scode > 0:
        affine[:3] = np.array(rows, dtype=np.float64).reshape(3, 4)
        return affine
    zooms = np.array([abs(pixdim[1]), abs(pixdim[2]), abs(pixdim[3])], dtype=np.float64)
    if qcode > 0:
        b, c, d = (float(q) for q in quaternion[:3])
        a = np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        sign = -1.0 if pixdim[0] < 0 else 1.0
        affine[:3, :3] = rotation * (zooms * [1.0, 1.0, sign])
        affine[:3, 3] = quaternion[3:]
        return affine
    # No orientation at all: zooms, i to the left, the origin at the centre, as nibabel has it.
    spatial = np.array([*shape[:3], 1, 1, 1][:3])
    zooms[0] = -zooms[0]
    affine[:3, :3] = np.diag(zooms)
    affine[:3, 3] = -(spatial - 1) / 2 * zooms
    return affine


def read(path: Path, *, frame: int | None = None) -> Volume:
    """Read a volume; ``frame`` picks one of a 4D file.

    Raises
    ------
    omlab.errors.InputError
        Damaged or truncated; more than three dimensions and no ``frame``; a colour or complex type.
    """
    name = path.name
    try:
        with open_maybe_gzip(path) as file:
            header = parse_header(file.read(540), name)
            data = _pair_of(path) if header.pair else None
            if data is None:
                voxels = _voxels(file, header, frame, name, start=0)
            else:
                with open_maybe_gzip(data) as other:
                    voxels = _voxels(other, header, frame, name, start=0)
    except (zlib.error, igzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{name}: is damaged or cut short: {error}", remedy="Fetch or export it again") from None
    geometry = Geometry(voxels.shape, header.affine)
    details = {
        "dimensions": list(header.shape), "spacing_mm": list(geometry.spacing_mm),
        "dtype": str(header.dtype), "sform_code": header.sform_code, "qform_code": header.qform_code,
    }  # fmt: skip
    if frame is not None:
        details["frame"] = frame
    return Volume(
        name=name,
        voxels=voxels,
        geometry=geometry,
        source=Source(path=path, format="nifti", files=(path,), details=details),
    )


def _voxels(file: Any, header: Header, frame: int | None, name: str, *, start: int) -> NDArray[Any]:
    shape = header.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    skipped = 0
    if len(shape) > 3:
        frames = int(np.prod(shape[3:]))
        if frame is None:
            raise InputError(
                f"{name}: has {len(shape)} dimensions {shape}, expected 3",
                remedy=f"Choose one of its {frames} volumes with --frame N (0 to {frames - 1})",
            )
        if not 0 <= frame < frames:
            raise InputError(f"{name}: has no volume {frame}", remedy=f"It has 0 to {frames - 1}")
        skipped = frame * int(np.prod(shape[:3])) * header.dtype.itemsize
    elif frame not in (None, 0):
        raise InputError(f"{name}: has a single volume, --frame {frame} was asked for")
    spatial = (*shape[:3], 1, 1, 1)[:3]
    count = int(np.prod(spatial, dtype=np.int64))
    offset = header.offset if not header.pair else int(header.offset)
    file.seek(offset + skipped)
    flat = np.empty(count, header.dtype)
    view = memoryview(flat).cast("B")
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise InputError(
                f"{name}: is cut short, {done} of {len(view)} bytes of voxels are there",
                remedy="Fetch or export it again",
            )
        done += got
    if hasattr(file, "peek") or len(shape) <= 3:
        file.read(1)  # past the last voxel lies the checksum of a compressed file: reading on verifies it
    voxels = flat.reshape(spatial, order="F")
    if not header.dtype.isnative:
        voxels = voxels.astype(header.dtype.newbyteorder("="))
    if header.slope != 1.0 or header.inter != 0.0:
        voxels = _scaled(voxels, header.slope, header.inter)
    return voxels


def _scaled(voxels: NDArray[Any], slope: float, inter: float) -> NDArray[Any]:
    """Values times slope plus intercept: integers if exact in int16 or int32, else float32 (float64 for float64)."""
    if voxels.dtype.kind in "iu" and slope == round(slope) and inter == round(inter):
        info = np.iinfo(voxels.dtype)
        ends = sorted((info.min * slope + inter, info.max * slope + inter))
        for kind in (np.int16, np.int32):
            if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max:
                scaled = voxels.astype(kind)
                scaled *= kind(slope)
                scaled += kind(inter)
                return scaled
    wide = np.float64 if voxels.dtype == np.float64 else np.float32
    result = voxels.astype(wide)
    result *= wide(slope)
    result += wide(inter)
    return result


def _pair_of(path: Path) -> Path:
    """The file with the voxels beside a header file."""
    stem = path.name.removesuffix(".gz").removesuffix(".hdr")
    for suffix in (".img", ".img.gz"):
        other = path.with_name(stem + suffix)
        if other.is_file():
            return other
    raise InputError(f"{path.name}: its voxels ({stem}.img) are not beside it")
