"""DICOM: single images, series of slices, and multi-frame objects. No patient's data reaches a message or a record."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from omlab.cases import dicom_pixels, dicom_series
from omlab.cases.types import Case, Image, Source, Volume
from omlab.errors import InputError, OmlabError
from omlab.geometry import Geometry
from omlab.memory import usable_cpus
from omlab.vocabulary import InputKind

#: What of a header is looked at when files are grouped.
_HEAD = [
    "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "Modality", "Rows", "NumberOfFrames",
    "ImagePositionPatient",
]  # fmt: skip
#: Modalities whose single slices are a plane of a volume.
_VOLUMES = {"CT", "MR", "PT", "NM"}


def read(
    path: Path,
    *,
    files: Sequence[Path] = (),
    frame: int | None = None,
    series: str | None = None,
    kinds: Collection[InputKind] = (),
) -> Case:
    """Read a DICOM case.

    Parameters
    ----------
    path : a file, or a folder with one series.
    files : the files of a series that were grouped before.
    frame : which frame of a multi-frame image, from 0.
    series : UID of the series wanted from a folder.
    kinds : what the caller can use; decides what a single slice of CT or MR becomes.

    Raises
    ------
    omlab.errors.InputError
        No image, several series, or slices that are no regular grid.
    """
    name = path.name
    if path.is_dir() and not files:
        opened = _choose(path, series)
    else:
        opened = {file: _open(file) for file in tuple(files) or (path,)}
    files = tuple(opened)
    if len(files) == 1:
        dataset = opened[files[0]]
        if _frames(dataset) > 1:
            return _multi_frame(dataset, files[0], name, frame, kinds)
        if frame not in (None, 0):
            raise InputError(f"{name}: has a single frame, --frame {frame} was asked for")
        slicelike = str(getattr(dataset, "Modality", "")) in _VOLUMES and hasattr(dataset, "ImagePositionPatient")
        if not (InputKind.VOLUME in kinds if kinds else slicelike):
            return _image(dataset, files[0], name, None)
        if int(getattr(dataset, "SamplesPerPixel", 1)) > 1 or not hasattr(dataset, "ImagePositionPatient"):
            return _image(dataset, files[0], name, None)
    return _series(opened, name)


def group(files: Sequence[Path], folder: Path) -> list[tuple[str, tuple[Path, ...], OmlabError | None]]:
    """(name, files, error) of every series with images among ``files``; other DICOM objects are passed over."""
    series: dict[str, list[Path]] = {}
    names: dict[str, str] = {}
    for path in files:
        try:
            head = _head(path)
        except OmlabError:
            continue  # found while walking a folder, not named by the user
        if not hasattr(head, "Rows") or str(getattr(head, "Modality", "")) in {"SEG", "RTSTRUCT", "RTDOSE", "SR"}:
            continue
        single = _frames(head) > 1 or not hasattr(head, "ImagePositionPatient")
        key = str(path) if single else str(getattr(head, "SeriesInstanceUID", folder))
        series.setdefault(key, []).append(path)
        number = getattr(head, "SeriesNumber", None)
        modality = str(getattr(head, "Modality", "")).lower() or "image"
        names[key] = path.stem if single else f"{folder.name}-{modality}{'' if number is None else f'-{number}'}"
    found: list[tuple[str, tuple[Path, ...], OmlabError | None]] = []
    for key, members in series.items():
        found.append((names[key], tuple(members), None))
    return found


def _choose(folder: Path, series: str | None) -> dict[Path, Any]:
    """Data sets of the one series in a folder, or of the wanted one; every file is read once."""
    found: dict[str, dict[Path, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            dataset = _open(path)
        except OmlabError:
            continue
        found.setdefault(str(getattr(dataset, "SeriesInstanceUID", "")), {})[path] = dataset
    if not found:
        raise InputError(f"{folder}: holds no DICOM images")
    listed = "; ".join(
        f"{uid} ({getattr(next(iter(members.values())), 'Modality', '?')}, {len(members)} files)"
        for uid, members in found.items()
    )
    if series is not None:
        if series not in found:
            raise InputError(f"{folder}: holds no series {series}", remedy=f"It holds: {listed}")
        return found[series]
    if len(found) > 1:
        raise InputError(
            f"{folder}: holds {len(found)} series, expected one", remedy=f"Choose one with --series UID: {listed}"
        )
    return next(iter(found.values()))


def _head(path: Path) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=_HEAD, force=True)
    except (InvalidDicomError, OSError, ValueError, EOFError, KeyError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{path.name}: is no DICOM file that can be read: {error}") from None


def _open(path: Path) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ImplicitVRLittleEndian

    try:
        dataset = dcmread(path, force=True)
        if not hasattr(dataset, "Rows"):
            raise InputError(f"{path.name}: is a DICOM object without an image, or cut short")
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (InvalidDicomError, OSError, ValueError, EOFError, KeyError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{path.name}: is damaged or no DICOM file: {str(error).splitlines()[0]}") from None
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def _frames(dataset: Any) -> int:
    try:
        return int(getattr(dataset, "NumberOfFrames", 1) or 1)
    except (TypeError, ValueError):
        return 1


def _details(dataset: Any) -> dict[str, Any]:
    """Identifiers that results need; nothing that names the patient."""
    keys = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality")
    return {key: str(getattr(dataset, key)) for key in keys if getattr(dataset, key, None)}


def _image(dataset: Any, path: Path, name: str, frame: int | None) -> Image:
    pixels, bits = dicom_pixels.picture(dataset, path, frame)
    spacing = getattr(dataset, "PixelSpacing", None) or getattr(dataset, "ImagerPixelSpacing", None)
    details = _details(dataset) | {"dimensions": list(pixels.shape)} | ({} if frame is None else {"frame": frame})
    return Image(
        name=name, pixels=pixels, bits=bits, spacing_mm=(float(spacing[0]), float(spacing[1])) if spacing else None,
        source=Source(path=path, format="dicom", files=(path,), details=details),
    )  # fmt: skip


def _series(opened: dict[Path, Any], name: str) -> Volume:
    """Slices in files of their own."""
    files, datasets = tuple(opened), list(opened.values())
    uids = {str(getattr(d, "SeriesInstanceUID", "")) for d in datasets}
    if len(uids) > 1:
        raise InputError(
            f"{name}: mixes {len(uids)} series", remedy=f"Choose one with --series: {'; '.join(sorted(uids))}"
        )
    slices = [dicom_series.slice_of(d, p) for d, p in zip(datasets, files, strict=True)]
    first = datasets[0]
    grid = dicom_series.arrange(slices, name, thickness=_thickness(first))
    ordered = [opened[s.path] for s in grid.slices]
    scales = {dicom_pixels.rescale_of(d) for d in ordered}
    signed = np.dtype(np.int16 if int(first.PixelRepresentation) else np.uint16)
    bits = int(getattr(first, "BitsStored", 16))
    types = {dicom_pixels.rescaled_type(signed, *scale, bits) for scale in scales}
    target = types.pop() if len(types) == 1 else np.dtype(np.float32)
    rows, columns = grid.slices[0].shape
    stack = np.empty((len(ordered), rows, columns), target)

    def fill(number: int) -> None:
        dataset, path = ordered[number], grid.slices[number].path
        values = dicom_pixels.decode(dataset, path)
        if values.shape != (rows, columns):
            raise InputError(f"{path.name}: is no grey slice, its pixels have the shape {values.shape}")
        slope, intercept = dicom_pixels.rescale_of(dataset)
        if slope == 1 and intercept == 0:
            stack[number] = values
        elif target.kind == "i":
            # In place, so that no temporary of a wider type is made.
            stack[number] = values
            stack[number] *= target.type(slope)
            stack[number] += target.type(intercept)
        else:
            stack[number] = values * np.float32(slope) + np.float32(intercept)
        del dataset.PixelData  # the volume holds it now

    if first.file_meta.TransferSyntaxUID.is_compressed:
        with ThreadPoolExecutor(usable_cpus()) as pool:  # decoders work outside of Python's lock
            list(pool.map(fill, range(len(ordered))))
    else:
        for number in range(len(ordered)):
            fill(number)
    return _volume(stack, grid, first, name, tuple(s.path for s in grid.slices), path=None)


def _thickness(dataset: Any) -> float | None:
    try:
        return float(dataset.SliceThickness) or None
    except (AttributeError, TypeError, ValueError):
        return None


def _volume(
    stack: np.ndarray, grid: dicom_series.Grid, first: Any, name: str, files: tuple[Path, ...], path: Path | None
) -> Volume:
    voxels = stack.transpose(2, 1, 0)  # [column, row, slice], a view
    geometry = Geometry(voxels.shape, grid.affine)
    details = _details(first) | {"dimensions": list(voxels.shape), "spacing_mm": list(geometry.spacing_mm)}
    if grid.tilt_degrees > 0.05:
        details["gantry_tilt_degrees"] = round(grid.tilt_degrees, 3)
    source = Source(path=path or files[0].parent, format="dicom", files=files, details=details, warnings=grid.notes)
    modality = str(getattr(first, "Modality", ""))
    return Volume(name=name, voxels=voxels, geometry=geometry, modality=modality, source=source)


def _multi_frame(dataset: Any, path: Path, name: str, frame: int | None, kinds: Collection[InputKind]) -> Case:
    """An enhanced object becomes a volume; a cine without places gives the frame that was asked for."""
    frames = _frames(dataset)
    groups = getattr(dataset, "PerFrameFunctionalGroupsSequence", None)
    placed = groups is not None and len(groups) == frames and hasattr(groups[0], "PlanePositionSequence")
    wants_image = bool(kinds) and InputKind.VOLUME not in kinds
    if placed and not wants_image and frame is None:
        return _enhanced(dataset, path, name, groups)
    if frame is None:
        raise InputError(
            f"{name}: has {frames} frames, expected one", remedy=f"Choose one with --frame N (0 to {frames - 1})"
        )
    if not 0 <= frame < frames:
        raise InputError(f"{name}: has no frame {frame}", remedy=f"It has 0 to {frames - 1}")
    return _image(dataset, path, name, frame)


def _enhanced(dataset: Any, path: Path, name: str, groups: Any) -> Volume:
    shared = getattr(dataset, "SharedFunctionalGroupsSequence", None)
    shared = shared[0] if shared else None

    def functional(group: Any, keyword: str) -> Any:
        sequence = getattr(group, keyword, None) or getattr(shared, keyword, None)
        return sequence[0] if sequence else None

    slices = []
    for number, one in enumerate(groups):
        measures = functional(one, "PixelMeasuresSequence")
        plane, turn = functional(one, "PlanePositionSequence"), functional(one, "PlaneOrientationSequence")
        if measures is None or plane is None or turn is None:
            raise InputError(f"{name}: its frame {number} has no place, orientation or spacing")
        slices.append(dicom_series.slice_of(dataset, path, frame=number, plane=plane, pixels=measures, turn=turn))
    measures = functional(groups[0], "PixelMeasuresSequence")
    grid = dicom_series.arrange(slices, name, thickness=_thickness(measures))
    values = dicom_pixels.decode(dataset, path)
    scales = [dicom_pixels.rescale_of(dataset, functional(one, "PixelValueTransformationSequence")) for one in groups]
    bits = int(getattr(dataset, "BitsStored", 16))
    types = {dicom_pixels.rescaled_type(values.dtype, *scale, bits) for scale in scales}
    target = types.pop() if len(types) == 1 else np.dtype(np.float32)
    stack = np.empty((len(slices), *values.shape[1:]), target)
    for place, one in enumerate(grid.slices):
        slope, intercept = scales[one.frame]
        stack[place] = values[one.frame] if (slope, intercept) == (1, 0) else values[one.frame] * slope + intercept
    return _volume(stack, grid, dataset, name, (path,), path=path)
