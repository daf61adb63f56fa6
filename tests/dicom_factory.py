"""DICOM files as scanners write them, made for tests. No part of omlab is used, so that errors cannot cancel out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def base(sop_class: str, modality: str, pixels: np.ndarray, *, stored: int = 0, series: str = "") -> Dataset:
    """A data set with everything but a place; ``pixels`` [(frame,) row, column (, RGB)]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), series or generate_uid()
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = modality, 3, 1
    dataset.PatientName, dataset.PatientID = "SECRET^NAME", "SECRET-ID"
    for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID"):
        setattr(dataset, keyword, "")
    dataset.ReferringPhysicianName = dataset.Manufacturer = ""
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    frames = pixels.ndim - (3 if colour else 2)
    dataset.Rows, dataset.Columns = pixels.shape[frames : frames + 2]
    if frames:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    return dataset


def slices(
    voxels: np.ndarray, affine: np.ndarray, *, slope: float = 1, intercept: float = 0, modality: str = "CT"
) -> list[Dataset]:
    """A series from stored values [column, row, slice] and the affine to RAS+ mm."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    study, series, reference = generate_uid(), generate_uid(), generate_uid()
    made = []
    for k in range(voxels.shape[2]):
        dataset = base(CT, modality, voxels[:, :, k].T, series=series)
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study, reference
        dataset.InstanceNumber = k + 1
        dataset.PixelSpacing = [float(f"{spacing[1]:.10g}"), float(f"{spacing[0]:.10g}")]
        dataset.SliceThickness = 99.0  # never what decides
        directions = lps[:3, :2] / spacing[:2]
        dataset.ImageOrientationPatient = [float(f"{v:.12g}") for v in directions.T.ravel()]
        dataset.ImagePositionPatient = [float(f"{v:.12g}") for v in lps[:3, 2] * k + lps[:3, 3]]
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        made.append(dataset)
    return made


def save(datasets: Sequence[Dataset], folder: Path, *, seed: int = 0) -> Path:
    """Write files whose names tell nothing about the order."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(datasets))
    for number, place in enumerate(order):
        datasets[place].save_as(folder / f"file-{number:04}.dcm", enforce_file_format=True)
    return folder


def enhanced(voxels: np.ndarray, affine: np.ndarray, *, order: Sequence[int] = (), intercept: float = 0) -> Dataset:
    """One multi-frame CT of the same kind; ``order`` is that of the frames in the file."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    order = list(order) or list(range(voxels.shape[2]))
    dataset = base(ENHANCED_CT, "CT", voxels.transpose(2, 1, 0)[order])
    dataset.FrameOfReferenceUID = generate_uid()
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    directions = lps[:3, :2] / spacing[:2]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [float(f"{v:.12g}") for v in directions.T.ravel()]
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [float(f"{spacing[1]:.10g}"), float(f"{spacing[0]:.10g}")]
    shared.PixelMeasuresSequence[0].SliceThickness = 99.0
    shared.PixelValueTransformationSequence = [Dataset()]
    shared.PixelValueTransformationSequence[0].RescaleSlope = 1
    shared.PixelValueTransformationSequence[0].RescaleIntercept = intercept
    shared.PixelValueTransformationSequence[0].RescaleType = "HU"
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups: list[Any] = []
    for number, k in enumerate(order):
        group = Dataset()
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [float(f"{v:.12g}") for v in lps[:3, 2] * k + lps[:3, 3]]
        group.FrameContentSequence = [Dataset()]
        group.FrameContentSequence[0].StackID = "1"
        group.FrameContentSequence[0].InStackPositionNumber = number + 1
        group.FrameContentSequence[0].DimensionIndexValues = [1, number + 1]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def compress(dataset: Dataset, syntax: str) -> Dataset:
    """With the pixels compressed (RLE, JPEG 2000 lossless, JPEG-LS)."""
    dataset.compress(pydicom.uid.UID(syntax), generate_instance_uid=False)
    return dataset
