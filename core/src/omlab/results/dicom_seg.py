"""Label maps as DICOM Segmentation objects (PS3.3 A.51 and, for LABELMAP, A.51 as amended by Supplement 243)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab import __version__
from omlab.cases import Case, Image
from omlab.errors import InputError, UsageError, require
from omlab.files import whole
from omlab.results.colours import colour_of
from omlab.results.identity import uid_of
from omlab.results.planes import stacked
from omlab.results.types import Label, Segmentation

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
#: What a structure without a code of its own is: a tissue, by a code that only omlab knows.
_TISSUE = ("85756007", "SCT", "Tissue")
_ANATOMY = ("123037004", "SCT", "Anatomical Structure")
_SCHEME = "99OMLAB"


def write_segmentation(
    result: Segmentation,
    case: Case,
    path: Path,
    *,
    binary: bool = False,
    model_name: str = "",
    model_version: str = "",
) -> None:
    """Write the labels as a DICOM SEG that refers to every slice of its source.

    As LABELMAP (one frame a slice, label values as they are, run-length encoded) or, for viewers that do not know it
    yet, BINARY (one frame a slice and structure, segments counted from 1 in the order of the structures). UIDs follow
    from the source, the model and the labels, so that the same run gives the same object.

    Raises
    ------
    omlab.errors.UsageError
        The source is one frame of a film, to which a segmentation of all its frames cannot refer.
    """
    require("highdicom", needed_for="writing DICOM SEG", install="omlab[dicom]")
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    sources, frames = _sources(case)
    stack = stacked(result.labels) if result.labels.ndim == 3 else result.labels[None]
    if frames:  # the order in the file, which the reader may have turned
        stack = stack[np.argsort(frames)]
    top = max((label.value for label in result.structures), default=0)
    stack = stack.astype(np.uint8 if top < 256 else np.uint16, copy=False)
    name = model_name or "omlab"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=name, version=model_version or __version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        _describe(number if binary else label.value, label, algorithm)
        for number, label in enumerate(result.structures, start=1)
    ]
    if binary:
        table = np.zeros(top + 1, stack.dtype)
        for number, label in enumerate(result.structures, start=1):
            table[label.value] = number
        stack = table[stack]
    stack = np.ascontiguousarray(stack)
    kind = "dicom-seg-binary" if binary else "dicom-seg"
    identity = (case.source.details.get("series_uid", ""), kind, name, model_version, stack)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values of the source that are no concern of the mask
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=stack,
            segmentation_type="BINARY" if binary else "LABELMAP",
            segment_descriptions=segments,
            series_instance_uid=uid_of("series", *identity),
            series_number=_series_number(sources[0]),
            sop_instance_uid=uid_of("instance", *identity),
            instance_number=1,
            manufacturer="omlab",
            manufacturer_model_name=name,
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=f"{name} {model_version}".strip()[:64],
            series_description=f"Segmentation by {name}"[:64],
            transfer_syntax_uid=ExplicitVRLittleEndian if binary else RLELossless,
            # All frames of a label map, so that the grid is whole; of binary segments only those that hold something.
            omit_empty_frames=binary and bool(stack.any()),
        )
        with whole(path) as temporary:
            segmentation.save_as(temporary, enforce_file_format=True)


def _sources(case: Case) -> tuple[list[Dataset], list[int]]:
    """Headers of the source in the order of slices, and for a multi-frame file the frame number of each slice."""
    import pydicom

    details = case.source.details
    if isinstance(case, Image) and int(details.get("frames", 1)) > 1:
        raise UsageError(
            f"{case.name}: is one frame of a multi-frame object, which a DICOM SEG of omlab cannot refer to",
            remedy="Use --format png",
        )
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in case.source.files]
    return headers, list(details.get("frame_numbers", ()))


def _series_number(source: Dataset) -> int:
    """Above those of the scanner, and below what DICOM's integer strings hold."""
    try:
        return 1000 + int(source.get("SeriesNumber") or 0) % 100_000_000
    except (TypeError, ValueError):
        return 1000


def _describe(number: int, label: Label, algorithm: Any) -> Any:
    import highdicom
    from highdicom.sr import CodedConcept

    # A name alone is no code that other software understands, so it goes under a scheme of our own.
    code = label.code or (f"L{label.value}", _SCHEME, label.name[:64])
    category = _ANATOMY if label.code else _TISSUE
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name[:64],
        segmented_property_category=CodedConcept(*category),
        segmented_property_type=CodedConcept(*code),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        display_color=highdicom.color.CIELabColor.from_rgb(*label.colour),
    )


def read_segmentation(path: Path) -> Segmentation:
    """Read a DICOM SEG (LABELMAP, BINARY or FRACTIONAL above one half) as a label map on its own grid.

    Slices that were left out because they are empty are filled in between the first and the last that are there.

    Returns
    -------
    Segmentation
        labels [column, row, slice]; segments keep their numbers as values. Without places in the patient, labels of a
        single frame are [row, column].

    Raises
    ------
    omlab.errors.InputError
        No DICOM SEG, damaged, slices off an even grid, or segments that overlap.
    """
    import pydicom

    from omlab.cases.dicom_header import DAMAGE
    from omlab.results.seg_grid import grid_of

    try:
        dataset = pydicom.dcmread(path)
        if str(dataset.SOPClassUID) not in SOP_CLASSES:
            raise InputError(f"{path.name}: is {dataset.SOPClassUID.name}, expected a DICOM SEG")
        kind = str(dataset.SegmentationType)
        # Number 0 is the background, which a label map of DICOM may list.
        structures = tuple(_label(item) for item in dataset.SegmentSequence if int(item.SegmentNumber))
        geometry, places = grid_of(dataset, path.name)
        top = max((label.value for label in structures), default=0)
        depth = max(places) + 1
        stack: NDArray[Any] = np.zeros(
            (depth, int(dataset.Rows), int(dataset.Columns)), np.uint8 if top < 256 else np.uint16
        )
        half = int(dataset.get("MaximumFractionalValue", 1)) / 2
        for number, (place, frame) in enumerate(zip(places, _frames(dataset), strict=True)):
            if kind == "LABELMAP":
                stack[place] = frame
                continue
            segment = _segment_of(dataset, number)
            inside = frame > half
            if (stack[place][inside] != 0).any():
                raise InputError(
                    f"{path.name}: its segments overlap, in a label map every voxel has one label",
                    remedy="Write each segment into a file of its own",
                )
            stack[place][inside] = segment
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (*DAMAGE, RuntimeError) as error:
        raise InputError(f"{path.name}: is damaged or no DICOM SEG: {str(error).splitlines()[0]}") from error
    if geometry is None:
        return Segmentation(labels=stack[0], structures=structures)
    return Segmentation(labels=stack.transpose(2, 1, 0), structures=structures, geometry=geometry)


def _frames(dataset: Dataset) -> Iterator[NDArray[Any]]:
    """Frames [row, column] one after another; packed bits, whose frames may begin within a byte, are unpacked here."""
    if int(dataset.BitsAllocated) != 1 or dataset.file_meta.TransferSyntaxUID.is_compressed:
        from pydicom.pixels import iter_pixels

        yield from iter_pixels(dataset)
        return
    shape = (int(dataset.Rows), int(dataset.Columns))
    size, packed = shape[0] * shape[1], np.frombuffer(dataset.PixelData, np.uint8)
    for number in range(int(dataset.NumberOfFrames)):
        first, last = number * size, (number + 1) * size
        bits = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(shape)


def _segment_of(dataset: Dataset, number: int) -> int:
    groups = dataset.PerFrameFunctionalGroupsSequence[number]
    owner = groups if "SegmentIdentificationSequence" in groups else dataset.SharedFunctionalGroupsSequence[0]
    return int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _label(item: Dataset) -> Label:
    import highdicom

    value = int(item.SegmentNumber)
    lab = item.get("RecommendedDisplayCIELabValue")
    colour = highdicom.color.CIELabColor.from_dicom_value(lab).to_rgb() if lab is not None else colour_of(value)
    code = None
    if item.get("SegmentedPropertyTypeCodeSequence"):
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        if kind.get("CodingSchemeDesignator") != _SCHEME:
            code = (str(kind.get("CodeValue", "")), str(kind.CodingSchemeDesignator), str(kind.CodeMeaning))
    red, green, blue = (int(c) for c in colour)
    return Label(value=value, name=str(item.SegmentLabel), colour=(red, green, blue), code=code)
