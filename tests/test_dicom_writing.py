"""DICOM out: segmentations and structure sets that other software reads, at the place of their source."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

import dicom_factory as factory
from omlab import Label, Segmentation
from omlab.cases import Image, Source, Volume, read
from omlab.errors import InputError, UsageError
from omlab.results import read_segmentation, write
from test_dicom_reading import VOXELS, turned

STRUCTURES = (
    Label(value=1, name="brain", colour=(230, 60, 60), code=("12738006", "SCT", "Brain")),
    Label(value=7, name="something of ours", colour=(0, 158, 115)),
    Label(value=40, name="never there", colour=(86, 180, 233)),
)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return read(factory.save(factory.slices(VOXELS, turned()), tmp_path / "scan"))


@pytest.fixture
def result(volume: Volume) -> Segmentation:
    labels = np.zeros(volume.voxels.shape, np.uint8)
    labels[2:8, 1:6, 1:5] = 1
    labels[4:6, 3:4, 2] = 0  # a hole
    labels[8:10, 6:9, 3:6] = 7
    return Segmentation(labels=labels, structures=STRUCTURES, geometry=volume.geometry)


def _write(result: Segmentation, case: Volume | Image, folder: Path, kind: str) -> Path:
    return write(result, case, folder, formats=[kind], model_name="tester", model_version="1.0")[kind]


def test_label_map_round_trip(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    path = _write(result, volume, tmp_path, "dicom-seg")
    back = read_segmentation(path)
    np.testing.assert_array_equal(back.labels, result.labels)
    assert back.geometry is not None
    assert back.geometry.same_grid(volume.geometry)
    assert [(s.value, s.name, s.code) for s in back.structures] == [
        (s.value, s.name, s.code) for s in result.structures
    ]
    for found, given in zip(back.structures, result.structures, strict=True):
        np.testing.assert_allclose(found.colour, given.colour, atol=2)  # CIELab has its own steps


def test_label_map_as_highdicom_reads_it(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    path = _write(result, volume, tmp_path, "dicom-seg")
    dataset = highdicom.seg.segread(path)
    assert dataset.segmentation_type.value == "LABELMAP"
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"
    assert dataset.FrameOfReferenceUID == volume.source.details["frame_of_reference_uid"]
    assert dataset.PatientID == "SECRET-ID"  # belongs to the study, or a PACS could not file it
    grid = dataset.get_volume(combine_segments=True)
    assert dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Brain"
    for value in (1, 7):
        own = volume.geometry.to_world(np.argwhere(result.labels == value).mean(axis=0))
        theirs = grid.map_indices_to_reference(np.argwhere(grid.array == value).mean(axis=0)[None])[0]
        np.testing.assert_allclose(theirs * (-1, -1, 1), own, atol=0.01)
    referenced = {
        item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == {pydicom.dcmread(f).SOPInstanceUID for f in volume.source.files}


def test_every_frame_names_the_slice_it_lies_on(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    dataset = pydicom.dcmread(_write(result, volume, tmp_path, "dicom-seg"))
    places = {
        pydicom.dcmread(f).SOPInstanceUID: np.array(pydicom.dcmread(f).ImagePositionPatient, float)
        for f in volume.source.files
    }
    for group in dataset.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(position, places[source], atol=1e-6)


def test_binary_for_older_viewers(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    path = _write(result, volume, tmp_path, "dicom-seg-binary")
    assert pydicom.dcmread(path).SegmentationType == "BINARY"
    back = read_segmentation(path)
    assert [s.name for s in back.structures] == [s.name for s in result.structures]
    assert back.geometry is not None
    for name in ("brain", "something of ours"):
        own = volume.geometry.to_world(np.argwhere(result.mask(name)))
        theirs = back.geometry.to_world(np.argwhere(back.mask(name)))
        np.testing.assert_allclose(np.sort(theirs, axis=0), np.sort(own, axis=0), atol=1e-3)


def test_an_empty_result_can_be_written(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    empty = Segmentation(labels=np.zeros_like(result.labels), structures=STRUCTURES, geometry=volume.geometry)
    for kind in ("dicom-seg", "dicom-seg-binary"):
        back = read_segmentation(_write(empty, volume, tmp_path / kind, kind))
        assert not back.labels.any()
    assert len(pydicom.dcmread(_write(empty, volume, tmp_path, "rtstruct")).StructureSetROISequence) == 3


def test_the_same_run_gives_the_same_identifiers(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    for kind in ("dicom-seg", "rtstruct"):
        one = pydicom.dcmread(_write(result, volume, tmp_path / "1", kind))
        two = pydicom.dcmread(_write(result, volume, tmp_path / "2", kind))
        assert one.SOPInstanceUID == two.SOPInstanceUID
        labels = result.labels.copy()
        labels[0, 0, 0] = 1
        other = Segmentation(labels=labels, structures=STRUCTURES, geometry=volume.geometry)
        assert pydicom.dcmread(_write(other, volume, tmp_path / "3", kind)).SOPInstanceUID != one.SOPInstanceUID


def test_enhanced_source_in_any_frame_order(tmp_path: Path) -> None:
    path = tmp_path / "enhanced.dcm"
    factory.enhanced(VOXELS, turned(), order=(3, 1, 0, 2, 6, 5, 4)).save_as(path, enforce_file_format=True)
    case = read(path)
    labels = (case.voxels > 3000).astype(np.uint8)
    labels[:, :, 4] = 0
    result = Segmentation(labels=labels, structures=STRUCTURES[:1], geometry=case.geometry)
    back = read_segmentation(_write(result, case, tmp_path, "dicom-seg"))
    np.testing.assert_array_equal(back.labels, labels)
    assert back.geometry is not None
    assert back.geometry.same_grid(case.geometry)
    structures = pydicom.dcmread(_write(result, case, tmp_path, "rtstruct"))
    lps = np.linalg.inv(factory.LPS @ case.geometry.affine)
    for contour in structures.ROIContourSequence[0].ContourSequence:
        point = np.array([*contour.ContourData[:3], 1.0], float)
        k = round((lps @ point)[2])
        assert contour.ContourImageSequence[0].ReferencedFrameNumber == (3, 1, 0, 2, 6, 5, 4).index(k) + 1


def test_a_radiograph(tmp_path: Path) -> None:
    path = tmp_path / "chest.dcm"
    dataset = factory.base(factory.RADIOGRAPH, "DX", VOXELS[:, :, 0], stored=12)
    dataset.ImagerPixelSpacing = [0.2, 0.2]
    dataset.save_as(path, enforce_file_format=True)
    case = read(path)
    labels = (case.pixels > 3000).astype(np.uint8)
    result = Segmentation(labels=labels, structures=STRUCTURES[:1])
    np.testing.assert_array_equal(read_segmentation(_write(result, case, tmp_path, "dicom-seg")).labels, labels)
    with pytest.raises(UsageError, match="outlines a volume"):
        _write(result, case, tmp_path, "rtstruct")


def test_structure_set(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    dataset = pydicom.dcmread(_write(result, volume, tmp_path, "rtstruct"))
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == [s.name for s in STRUCTURES]
    assert "ContourSequence" not in dataset.ROIContourSequence[2]
    # One polygon a slice: the hole is joined to the outline by a cut.
    assert len(dataset.ROIContourSequence[0].ContourSequence) == 4
    known = {pydicom.dcmread(f).SOPInstanceUID for f in volume.source.files}
    for contour in dataset.ROIContourSequence[0].ContourSequence:
        assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID in known
        assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints


def test_what_cannot_be_written_says_so(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    elsewhere = Volume(name="x", voxels=volume.voxels, geometry=volume.geometry, source=Source(format="nifti"))
    for kind in ("dicom-seg", "rtstruct"):
        with pytest.raises(UsageError, match="refers to the DICOM series"):
            _write(result, elsewhere, tmp_path, kind)


def test_what_is_no_segmentation_says_so(tmp_path: Path, volume: Volume, result: Segmentation) -> None:
    with pytest.raises(InputError, match="expected a DICOM SEG"):
        read_segmentation(volume.source.files[0])
    path = _write(result, volume, tmp_path, "dicom-seg")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="damaged"):
        read_segmentation(path)
    with pytest.raises(InputError, match="is a label map segmentation"):
        read(_write(result, volume, tmp_path / "again", "dicom-seg"))
