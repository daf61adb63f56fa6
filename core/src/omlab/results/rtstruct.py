"""Label maps as DICOM RT Structure Sets (PS3.3 A.19), outlines along the edges of voxels."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omlab import __version__
from omlab.cases import Case, Volume
from omlab.errors import UsageError
from omlab.files import whole
from omlab.results.identity import uid_of
from omlab.results.outlines import outlines
from omlab.results.types import Label, Segmentation

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
#: Taken from the source so that a PACS files the structures with the study; empty where the source has none.
_OF_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip


def write_segmentation(
    result: Segmentation, case: Case, path: Path, *, model_name: str = "", model_version: str = ""
) -> None:
    """Write one region of interest a structure, as closed planar contours that name the slice they lie on.

    Structures that were not found are listed without contours. Coordinates have four decimals (0.1 micrometres).

    Raises
    ------
    omlab.errors.UsageError
        The case is no volume, or does not say in which frame of reference it lies.
    """
    import pydicom
    from pydicom.uid import ImplicitVRLittleEndian

    frame_of_reference = str(case.source.details.get("frame_of_reference_uid", ""))
    if not isinstance(case, Volume) or result.geometry is None:
        raise UsageError(f"{case.name}: an RTSTRUCT outlines a volume, found {case.kind}", remedy="Use --format png")
    if not frame_of_reference:
        raise UsageError(
            f"{case.name}: its DICOM header has no FrameOfReferenceUID, an RTSTRUCT needs one",
            remedy="Use --format nifti",
        )
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in case.source.files]
    numbers = list(case.source.details.get("frame_numbers", ()))
    images = [
        _reference(headers[0], numbers[k]) if numbers else _reference(headers[k])
        for k in range(result.geometry.shape[2])
    ]
    name = model_name or "omlab"
    identity = (str(headers[0].SeriesInstanceUID), "rtstruct", name, model_version, result.labels)
    dataset = _header(headers[0], name, model_version, identity)
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=headers[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[
            _item(
                SeriesInstanceUID=headers[0].SeriesInstanceUID,
                ContourImageSequence=images[:1] if numbers else images,
            )
        ],
    )
    dataset.ReferencedFrameOfReferenceSequence = [
        _item(FrameOfReferenceUID=frame_of_reference, RTReferencedStudySequence=[study])
    ]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    contours = _contours(result, images)
    for number, label in enumerate(result.structures, start=1):
        dataset.StructureSetROISequence.append(_region(number, label, frame_of_reference, name))
        region = _item(ROIDisplayColor=list(label.colour), ReferencedROINumber=number)
        if label.value in contours:
            region.ContourSequence = contours[label.value]
        dataset.ROIContourSequence.append(region)
        dataset.RTROIObservationsSequence.append(_observation(number, label))
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    # Explicit lengths of 16 bits would end a long contour at 64 KiB.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    with whole(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _item(**values: object) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _reference(header: Dataset, frame: int | None = None) -> Dataset:
    reference = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    return reference


def _header(source: Dataset, name: str, version: str, identity: tuple[str | NDArray[np.generic], ...]) -> Dataset:
    now = datetime.now()
    dataset = _item(**{keyword: source.get(keyword, "") for keyword in _OF_STUDY})
    if source.get("SpecificCharacterSet"):
        dataset.SpecificCharacterSet = source.SpecificCharacterSet
    dataset.SOPClassUID = RTSTRUCT
    dataset.SOPInstanceUID = uid_of("instance", *identity)
    dataset.SeriesInstanceUID = uid_of("series", *identity)
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesNumber = 1001
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = f"Structures by {name}"[:64]
    dataset.Manufacturer = "omlab"
    dataset.ManufacturerModelName = name[:64]
    dataset.SoftwareVersions = [__version__, *([version] if version else [])]
    dataset.OperatorsName = ""
    dataset.StructureSetLabel = name[:16]
    dataset.StructureSetDate = now.strftime("%Y%m%d")
    dataset.StructureSetTime = now.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _region(number: int, label: Label, frame_of_reference: str, name: str) -> Dataset:
    return _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame_of_reference,
        ROIName=label.name[:64],
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=name[:64],
    )


def _observation(number: int, label: Label) -> Dataset:
    observation = _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        ROIObservationLabel=label.name[:16],
        RTROIInterpretedType="",
        ROIInterpreter="",
    )
    if label.code:
        value, scheme, meaning = label.code
        code = _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning[:64])
        observation.RTROIIdentificationCodeSequence = [code]
    return observation


def _contours(result: Segmentation, images: list[Dataset]) -> dict[int, list[Dataset]]:
    """Contours of every label value that occurs, slice by slice: a pass over the volume, not one a structure."""
    assert result.geometry is not None
    found: dict[int, list[Dataset]] = {}
    for k in range(result.geometry.shape[2]):
        plane = np.ascontiguousarray(result.labels[:, :, k].T)  # [row, column]
        for value in np.flatnonzero(np.bincount(plane.ravel())).tolist():
            if value == 0:
                continue
            mask = plane == value
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            top, left = int(rows[0]), int(columns[0])
            for polygon in outlines(mask[top : rows[-1] + 1, left : columns[-1] + 1]):
                ijk = np.column_stack([polygon[:, 1] + left, polygon[:, 0] + top, np.full(len(polygon), k)])
                found.setdefault(value, []).append(_contour(result.geometry.to_world(ijk), images[k]))
    return found


def _contour(ras_mm: NDArray[np.float64], image: Dataset) -> Dataset:
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    contour = _item(
        ContourImageSequence=[image], ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(ras_mm)
    )
    lps = ras_mm * (-1.0, -1.0, 1.0)
    text = "\\".join(f"{value:.4f}" for value in lps.ravel().tolist()).encode()
    text += b" " * (len(text) % 2)
    # As the bytes of the file: a million numbers as objects of their own take longer than the outlines.
    data = Tag("ContourData")
    contour[data] = RawDataElement(data, "DS", len(text), text, 0, True, True)
    return contour
