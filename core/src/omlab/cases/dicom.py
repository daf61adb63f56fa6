"""DICOM: series as volumes, radiographs, photographs and single frames as images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omlab.cases import dicom_pixels
from omlab.cases.dicom_header import Header, NoScanError, read_header, read_headers
from omlab.cases.dicom_series import Ordered, Stack, order, stacks_of
from omlab.cases.sniff import Family, family_of
from omlab.cases.types import Case, Image, Source, Volume
from omlab.errors import InputError, OmlabError
from omlab.vocabulary import InputKind

#: Modalities whose files are slices of a volume.
VOLUMES = {"CT", "MR", "PT", "NM"}
#: Found by :func:`group`: name, files, error.
Group = tuple[str, tuple[Path, ...], OmlabError | None]


def read(
    path: Path,
    *,
    files: Sequence[Path] = (),
    frame: int | None = None,
    series: str | None = None,
    kinds: Collection[InputKind] = (),
) -> Case:
    """Read a DICOM file, or the series in a folder.

    Slices with a place in the patient make a :class:`Volume`, in the order and spacing of their positions, whatever
    their files are called. Everything else is an :class:`Image`. Where only an image is wanted (``kinds``), a volume
    of one slice, or slice ``frame`` of a volume, is given as one.

    Raises
    ------
    omlab.errors.InputError
        No image, damaged, several series or frames and none chosen, missing or duplicate slices, no decoder.
    """
    headers = read_headers(files, strict=True) if files else _headers_at(path)
    if series is not None:
        headers = [h for h in headers if str(h.get("SeriesInstanceUID", "")) == series]
        if not headers:
            raise InputError(f"{path.name}: has no series {series}")
    stacks, singles = stacks_of(headers)
    _refuse_mixed(path, stacks, singles)
    if singles:
        return _image(singles[0], frame)
    stack = stacks[0]
    flat = bool(kinds) and InputKind.VOLUME not in kinds and InputKind.IMAGE in kinds
    if flat and (frame is not None or len(stack.frames) == 1):
        return _slice(stack, path, frame)
    return _volume(stack, order(stack, path.name, frame), path, frame)


def _headers_at(path: Path) -> list[Header]:
    if not path.is_dir():
        return [read_header(path)]
    inside = []
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            if family_of(file) is Family.DICOM:
                inside.append(file)
        except InputError:
            if file.suffix.lower() == ".dcm":  # an empty or damaged slice must not go missing unseen
                raise
    headers = read_headers(inside, strict=False)
    if not headers:
        raise InputError(f"{path}: holds no DICOM image")
    return headers


def _refuse_mixed(path: Path, stacks: list[Stack], singles: list[Header]) -> None:
    if len(stacks) + len(singles) == 1:
        return
    uids = {s.series for s in stacks} | {str(h.get("SeriesInstanceUID", "")) for h in singles}
    found = [s.describe() for s in stacks] + [f"image {h.path.name}" for h in singles]
    shown = "; ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    if len(uids) > 1:
        raise InputError(
            f"{path.name}: holds {len(uids)} DICOM series, expected one: {shown}", remedy="Choose one with --series UID"
        )
    raise InputError(
        f"{path.name}: images of several sizes, spacings or orientations are mixed in one DICOM series: {shown}",
        remedy="Put the files of each into a folder of its own",
    )


def _details(header: Header) -> dict[str, Any]:
    details: dict[str, Any] = {
        "modality": str(header.get("Modality", "")),
        "series_uid": str(header.get("SeriesInstanceUID", "")),
        "study_uid": str(header.get("StudyInstanceUID", "")),
        "sop_class_uid": str(header.get("SOPClassUID", "")),
        "transfer_syntax_uid": header.syntax,
    }
    padding = header.get("PixelPaddingValue")
    if padding is not None:
        details["padding_value"] = int(padding)
    return details


def _volume(stack: Stack, ordered: Ordered, path: Path, frame: int | None) -> Volume:
    voxels = dicom_pixels.volume(ordered.frames)
    header = stack.first
    details = _details(header)
    if "padding_value" in details:  # as it is in the voxels, which are rescaled
        first = ordered.frames[0]
        details["padding_value"] = details["padding_value"] * first.slope + first.intercept
    details |= {"dimensions": list(voxels.shape), "dtype": str(voxels.dtype)}
    details["spacing_mm"] = list(ordered.geometry.spacing_mm)
    if header.get("FrameOfReferenceUID"):
        details["frame_of_reference_uid"] = str(header.get("FrameOfReferenceUID"))
    if ordered.tilt_degrees:
        details["gantry_tilt_degrees"] = ordered.tilt_degrees
    if ordered.volumes > 1:
        details |= {"frame": frame, "volumes": ordered.volumes}
    if header.frames > 1:
        # Which frame of the file lies at each k: writers that refer to frames need it.
        details["frame_numbers"] = [f.index + 1 for f in ordered.frames]
    warnings = list(ordered.warnings)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        warnings.append("the series is to be shown inverted (MONOCHROME1); its values were left as they are")
    files = tuple(dict.fromkeys(f.header.path for f in ordered.frames))
    source = Source(path=path, format="dicom", files=files, details=details, warnings=tuple(warnings))
    return Volume(
        name=path.name,
        voxels=voxels,
        geometry=ordered.geometry,
        modality=str(header.get("Modality", "")),
        source=source,
    )


def _slice(stack: Stack, path: Path, frame: int | None) -> Image:
    """One slice of a stack for a model that looks at images."""
    ordered = order(stack, path.name, None)
    index = frame or 0
    if not 0 <= index < len(ordered.frames):
        raise InputError(f"{path.name}: has no slice {index}", remedy=f"It has 0 to {len(ordered.frames) - 1}")
    chosen = ordered.frames[index]
    pixels = np.ascontiguousarray(dicom_pixels.volume((chosen,))[:, :, 0].T)
    details = _details(chosen.header) | {"dimensions": list(pixels.shape), "dtype": str(pixels.dtype), "frame": index}
    source = Source(path=path, format="dicom", files=(chosen.header.path,), details=details, warnings=ordered.warnings)
    bits = int(chosen.header.get("BitsStored", 16))
    return Image(name=path.name, pixels=pixels, spacing_mm=chosen.spacing_mm, bits=bits, source=source)


def _image(header: Header, frame: int | None) -> Image:
    name, frames = header.path.name, header.frames
    if frames > 1 and frame is None:
        raise InputError(
            f"{name}: has {frames} frames, expected one", remedy=f"Choose one with --frame N (0 to {frames - 1})"
        )
    if frame is not None and not 0 <= frame < frames:
        raise InputError(f"{name}: has no frame {frame}", remedy=f"It has 0 to {frames - 1}")
    pixels, bits = dicom_pixels.image(header, frame if frames > 1 else None)
    details = _details(header) | {"dimensions": list(pixels.shape), "dtype": str(pixels.dtype)}
    if frames > 1:
        details |= {"frame": frame, "frames": frames}
    for keyword, key in (("WindowCenter", "window_centre"), ("WindowWidth", "window_width")):
        value = header.get(keyword)
        if value is not None:
            details[key] = float(value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value)
    source = Source(path=header.path, format="dicom", files=(header.path,), details=details)
    return Image(name=name, pixels=pixels, spacing_mm=_pixel_spacing(header), bits=bits, source=source)


def _pixel_spacing(header: Header) -> tuple[float, float] | None:
    """(row, column) distance in mm; that on the detector where that in the patient is not known."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = header.get(keyword)
        if value is not None and len(value) == 2 and min(float(v) for v in value) > 0:
            return float(value[0]), float(value[1])
    regions = header.get("SequenceOfUltrasoundRegions") or ()
    if (
        len(regions) == 1
        and regions[0].get("PhysicalUnitsXDirection") == regions[0].get("PhysicalUnitsYDirection") == 3
    ):
        across, down = regions[0].get("PhysicalDeltaX"), regions[0].get("PhysicalDeltaY")
        if across and down:
            return 10 * abs(float(down)), 10 * abs(float(across))
    return None


def group(paths: Sequence[Path], folder: Path, wanted: str | None = None) -> list[Group]:
    """Sort the DICOM files of a folder into cases, or those of the series with the UID ``wanted``.

    Other DICOM objects are passed over. A damaged file is a case with an error, since a slice may be missing without
    it.
    """
    headers: list[Header] = []
    found: list[Group] = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except NoScanError:
            continue
        except InputError as error:
            found.append((path.name, (path,), error))
    if wanted is not None:
        headers = [h for h in headers if str(h.get("SeriesInstanceUID", "")) == wanted]
    try:
        stacks, singles = stacks_of(headers)
    except InputError as error:
        return [*found, (folder.name, tuple(h.path for h in headers), error)]
    for stack in stacks:
        files = tuple(dict.fromkeys(f.header.path for f in stack.frames))
        number, modality = stack.first.get("SeriesNumber"), str(stack.first.get("Modality", "")).lower()
        name = files[0].name if len(files) == 1 else folder.name
        if len(files) > 1 and len(stacks) + len(singles) > 1:
            name = "-".join(part for part in (folder.name, modality, str(number or "")) if part)
        stray = [h for h in singles if h.modality in VOLUMES and str(h.get("SeriesInstanceUID", "")) == stack.series]
        if stray:
            error = InputError(
                f"{stray[0].path.name}: belongs to a series of slices, but its header does not tell where it lies",
                remedy="Fetch or export it again, or move it away",
            )
            found.append((name, files, error))
            singles = [h for h in singles if h not in stray]
        else:
            found.append((name, files, None))
    return found + [(h.path.name, (h.path,), None) for h in singles]
