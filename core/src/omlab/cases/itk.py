"""NRRD and MetaImage, which 3D Slicer and ITK's tools write, through SimpleITK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from omlab.cases.types import Source, Volume
from omlab.errors import InputError, require
from omlab.geometry import Geometry

#: How a file begins -> name of the format, and of SimpleITK's reader.
FORMATS = {b"NRRD": ("nrrd", "NrrdImageIO"), b"ObjectType": ("metaimage", "MetaImageIO")}
_RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0])


def read(path: Path, *, frame: int | None = None) -> Volume:
    """Read a volume; ``frame`` picks one of a 4D file, along its last axis or, where voxels hold several numbers, of
    those.

    Raises
    ------
    omlab.errors.InputError
        Damaged or truncated; more than three dimensions and no ``frame``; complex numbers.
    omlab.errors.MissingDependency
        SimpleITK is not installed.
    """
    return read_with_header(path, frame=frame)[0]


def read_with_header(path: Path, *, frame: int | None = None) -> tuple[Volume, dict[str, str]]:
    """:func:`read`, and what the header tells beside the grid, which may be of the patient and so is kept apart."""
    image, kind = _read(path)
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(
            f"{path.name}: its voxels are complex, expected one number a voxel", remedy="Take the magnitude"
        )
    dimensions, parts = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    lengths = list(image.GetSize())
    if dimensions < 3:
        raise InputError(f"{path.name}: has {dimensions} dimensions {tuple(lengths)}, expected 3")
    # [t,] z, y, x [, part], as SimpleITK gives arrays.
    voxels = _library().GetArrayFromImage(image)
    frames = parts if parts > 1 else int(np.prod(lengths[3:], dtype=int))
    if frames > 1 and frame is None:
        what = f"{parts} numbers a voxel" if parts > 1 else f"{dimensions} dimensions {tuple(lengths)}"
        raise InputError(
            f"{path.name}: has {what}, expected one volume",
            remedy=f"Choose one of its {frames} with --frame N (0 to {frames - 1})",
        )
    if not 0 <= (frame or 0) < frames:
        raise InputError(f"{path.name}: has no volume {frame}", remedy=f"It has 0 to {frames - 1}")
    if parts > 1:
        voxels = np.ascontiguousarray(voxels.reshape(*lengths[2::-1], parts)[..., frame or 0])
    else:
        voxels = voxels.reshape(frames, *lengths[2::-1])[frame or 0]
    geometry = Geometry(tuple(lengths[:3]), _affine(image))
    header = {key: image.GetMetaData(key) for key in sorted(image.GetMetaDataKeys())}
    details: dict[str, Any] = {
        "dimensions": lengths, "spacing_mm": list(geometry.spacing_mm), "dtype": str(voxels.dtype),
    }  # fmt: skip
    if frame is not None:
        details["frame"] = frame
    source = Source(path=path, format=kind, files=(path,), details=details)
    return Volume(name=path.name, voxels=voxels.T, geometry=geometry, source=source), header


def _library() -> Any:
    return require("SimpleITK", needed_for="reading NRRD and MetaImage", install="omlab[itk]")


def _read(path: Path) -> tuple[Any, str]:
    library = _library()
    with open(path, "rb") as file:
        start = file.read(16)
    kind, reader = next(found for magic, found in FORMATS.items() if start.startswith(magic))
    before = library.ProcessObject.GetGlobalWarningDisplay()
    library.ProcessObject.SetGlobalWarningDisplay(False)  # what is wrong is told by the error
    try:
        return library.ReadImage(str(path), imageIO=reader), kind
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"{path.name}: is damaged or cut short: {lines[-1] if lines else 'no reason given'}",
            remedy="Fetch or export it again; a header with the voxels in a file beside it needs both",
        ) from None
    finally:
        library.ProcessObject.SetGlobalWarningDisplay(before)


def _affine(image: Any) -> np.ndarray:
    count = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(count, count)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = _RAS_OF_LPS @ direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = _RAS_OF_LPS @ np.array(image.GetOrigin()[:3])
    return affine
