"""Read label maps back, from omlab or from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from omlab.cases.sniff import Family, family_of
from omlab.cases.types import Volume
from omlab.errors import InputError
from omlab.results.colours import colour_of
from omlab.results.types import Label, Segmentation


def read_segmentation(path: str | Path) -> Segmentation:
    """A label map from NIfTI, DICOM SEG, NRRD, MetaImage, PNG or TIFF; of a TIFF of many pages [z, y, x]. Labels that
    the file does not name are called ``label N``.

    Raises
    ------
    omlab.errors.InputError
        The file cannot be read or its values are no labels (negative, fractional).
    """
    path = Path(path)
    family = family_of(path)
    if family is Family.DICOM:
        from omlab.results import dicom_seg

        return dicom_seg.read_segmentation(path)
    if family is Family.NIFTI:
        from omlab.cases import nifti

        volume = nifti.read(path)
        from omlab.results.nifti import read_names

        return _of_volume(volume, read_names(path))
    if family is Family.ITK:
        from omlab.cases import itk
        from omlab.results.slicer import names

        volume, header = itk.read_with_header(path)
        return _of_volume(volume, names(header, path.name))
    from PIL import Image as Pillow

    try:
        with Pillow.open(path) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
            values = np.asarray(picture)  # a palette picture gives its indices
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name}: cannot be read: {error}") from None
    if pages > 1:
        from omlab.cases import stack

        planes = stack.read(path)
        values = planes.read(0, len(planes))
    elif values.ndim != 2:
        raise InputError(f"{path.name}: is a colour picture, expected one label a pixel")
    labels = _labels(values, path.name)
    return Segmentation(labels=labels, structures=_unnamed(labels))


def _of_volume(volume: Volume, named: tuple[Label, ...]) -> Segmentation:
    labels = _labels(volume.voxels, volume.name)
    others = tuple(label for label in _unnamed(labels) if label.value not in {n.value for n in named})
    return Segmentation(labels=labels, structures=named + others, geometry=volume.geometry)


def _labels(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values)
            whole = np.array_equal(rounded, values)
        if not whole:
            raise InputError(f"{name}: has values that are no whole numbers, expected labels")
        values = rounded
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > 65535:
        raise InputError(f"{name}: has values from {low:g} to {high:g}, expected labels from 0 to 65535")
    return values.astype(np.uint8 if high < 256 else np.uint16)


def _unnamed(labels: np.ndarray) -> tuple[Label, ...]:
    present = np.flatnonzero(np.bincount(labels.ravel(order="K")))
    return tuple(Label(value=int(v), name=f"label {int(v)}", colour=colour_of(int(v))) for v in present if v)
