"""DICOM in: the same voxels at the same places as an independent reader, and nothing silently wrong."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

import dicom_factory as factory
from omlab.cases import Image, Volume, find, read
from omlab.errors import InputError
from omlab.vocabulary import InputKind

RNG = np.random.default_rng(5)
VOXELS = RNG.integers(0, 4096, (11, 9, 7)).astype(np.uint16)


def turned(
    angles: tuple[float, float, float] = (10, -20, 30), spacing: tuple[float, ...] = (0.7, 0.8, 2.5)
) -> np.ndarray:
    affine = np.eye(4)
    for axis, angle in enumerate(np.radians(angles)):
        plane = [a for a in range(3) if a != axis]
        turn = np.eye(4)
        turn[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = affine @ turn
    affine[:3, :3] = affine[:3, :3] * spacing
    affine[:3, 3] = (12.0, -34.0, 56.0)
    # Slices are stacked along the cross product of DICOM's rows and columns; the handedness of LPS is that of RAS.
    return affine


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, -20, 30), (90, 0, 0), (200, 15, -75)])
def test_a_series_equals_what_simpleitk_reads(tmp_path: Path, angles: tuple[float, float, float]) -> None:
    factory.save(factory.slices(VOXELS, turned(angles), intercept=-1024), tmp_path)
    volume = read(tmp_path)
    assert isinstance(volume, Volume)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.min() < 0
    for index in ((0, 0, 0), (10, 8, 6), (3, 5, 1)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose(volume.geometry.to_world(index), point, atol=1e-4)
    assert volume.geometry.spacing_mm == pytest.approx((0.7, 0.8, 2.5))
    assert volume.modality == "CT"


def test_file_names_and_slice_thickness_decide_nothing(tmp_path: Path) -> None:
    datasets = factory.slices(VOXELS, turned())
    first = read(factory.save(datasets, tmp_path / "a", seed=1))
    for number, dataset in enumerate(datasets):
        dataset.InstanceNumber = 50 - number
        del dataset.SliceThickness
    second = read(factory.save(datasets, tmp_path / "b", seed=2))
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_allclose(first.geometry.affine, second.geometry.affine)


def test_nothing_of_the_patient_is_kept(tmp_path: Path) -> None:
    case = read(factory.save(factory.slices(VOXELS, turned()), tmp_path))
    assert "SECRET" not in repr(case.source)


def test_gantry_tilt_is_kept_as_shear(tmp_path: Path) -> None:
    affine = turned((0, 0, 0))
    affine[1, 2] = 0.7  # slices slide along the patient's y
    case = read(factory.save(factory.slices(VOXELS, affine), tmp_path))
    np.testing.assert_allclose(case.geometry.affine, affine, atol=1e-6)
    assert case.source.details["gantry_tilt_degrees"] == pytest.approx(np.degrees(np.arctan(0.7 / 2.5)), abs=1e-6)
    assert "tilt" in case.source.warnings[0]


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, 0, "uint16"), (1, -1024, "int16"), (3, -60000, "int32"), (0.5, 1, "float32")]
)
def test_rescaled_exactly_in_the_smallest_type(tmp_path: Path, slope: float, intercept: float, dtype: str) -> None:
    case = read(factory.save(factory.slices(VOXELS, turned(), slope=slope, intercept=intercept), tmp_path))
    np.testing.assert_array_equal(case.voxels, VOXELS.astype(np.float64) * slope + intercept)
    assert case.voxels.dtype == dtype


def test_a_slope_of_its_own_in_every_slice(tmp_path: Path) -> None:
    datasets = factory.slices(VOXELS, turned(), modality="PT")
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope = 0.25 * (k + 1)
    case = read(factory.save(datasets, tmp_path))
    np.testing.assert_allclose(case.voxels, VOXELS * (0.25 * np.arange(1, 8)), rtol=1e-6)


@pytest.mark.parametrize("high", [11, 15])
def test_bits_beside_the_stored_ones_are_dropped(tmp_path: Path, high: int) -> None:
    signed = RNG.integers(-2048, 2048, VOXELS.shape).astype(np.int16)
    raw = (signed.astype(np.int32) << (high - 11)) & 0xFFFF
    if high == 11:
        raw = (raw & 0x0FFF) | 0x3000  # an old overlay in the unused bits
    datasets = factory.slices(raw.astype(np.uint16).view(np.int16), turned())
    for dataset in datasets:
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, high, 1
    np.testing.assert_array_equal(read(factory.save(datasets, tmp_path)).voxels, signed)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"])
@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_lossless(tmp_path: Path, syntax: str, signed: bool) -> None:
    voxels = VOXELS.astype(np.int16) - 2048 if signed else VOXELS
    datasets = factory.slices(voxels, turned(), intercept=-1024)
    for k, dataset in enumerate(datasets):
        dataset.BitsStored, dataset.HighBit = 12, 11
        predictor = 1 if syntax.endswith(".70") else 5
        frame = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(voxels[:, :, k].T).view(np.uint16) & 0xFFF,
            lossless=True, predictor=predictor, bitspersample=12,
        )  # fmt: skip
        dataset.PixelData = encapsulate([frame])
        dataset.file_meta.TransferSyntaxUID = syntax
    case = read(factory.save(datasets, tmp_path))
    np.testing.assert_array_equal(case.voxels, voxels.astype(int) - 1024)


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"], ids=["rle", "j2k", "jpeg-ls"]
)
def test_compressed_series(tmp_path: Path, syntax: str) -> None:
    voxels = np.tile(VOXELS, (4, 5, 1))  # JPEG 2000 wants some pixels
    datasets = [factory.compress(d, syntax) for d in factory.slices(voxels, turned(), intercept=-1024)]
    case = read(factory.save(datasets, tmp_path))
    np.testing.assert_array_equal(case.voxels, voxels.astype(int) - 1024)


def test_enhanced_equals_the_series(tmp_path: Path) -> None:
    affine = turned()
    path = tmp_path / "enhanced.dcm"
    factory.enhanced(VOXELS, affine, order=(3, 1, 0, 2, 6, 5, 4), intercept=-1000).save_as(
        path, enforce_file_format=True
    )
    case = read(path)
    np.testing.assert_array_equal(case.voxels, VOXELS.astype(int) - 1000)
    np.testing.assert_allclose(case.geometry.affine, affine, atol=1e-6)


def test_time_points_are_chosen_not_mixed(tmp_path: Path) -> None:
    both = []
    for time in (2, 1):
        for dataset in factory.slices(VOXELS + time, turned(), modality="MR"):
            dataset.TemporalPositionIdentifier = time
            dataset.SeriesInstanceUID = "1.2.3"
            both.append(dataset)
    factory.save(both, tmp_path)
    with pytest.raises(InputError, match=r"holds 2 volumes.*--frame N \(0 to 1\)"):
        read(tmp_path)
    for frame in (0, 1):
        np.testing.assert_array_equal(read(tmp_path, frame=frame).voxels, VOXELS + frame + 1)
    with pytest.raises(InputError, match="has no volume 2"):
        read(tmp_path, frame=2)


def _broken_series(defect: str) -> list[Dataset]:
    datasets = factory.slices(VOXELS, turned())
    middle = datasets[3]
    if defect == "missing":
        del datasets[3]
    elif defect == "twice":
        datasets.append(middle)
    elif defect == "same place":
        middle.ImagePositionPatient = datasets[2].ImagePositionPatient
    elif defect == "uneven":
        step = np.array(datasets[4].ImagePositionPatient) - np.array(middle.ImagePositionPatient)
        middle.ImagePositionPatient = [float(v) for v in np.array(middle.ImagePositionPatient) + 0.3 * step]
    elif defect == "size":
        other = factory.slices(VOXELS[:8], turned())[3]
        other.SeriesInstanceUID = middle.SeriesInstanceUID
        datasets[3] = other
    elif defect == "direction":
        middle.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    elif defect == "no place":
        del middle.ImagePositionPatient
    elif defect == "spacing":
        del middle.PixelSpacing
    elif defect == "not finite":
        middle.ImagePositionPatient = ["nan", "0", "0"]
    elif defect == "skewed":
        for dataset in datasets:
            dataset.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
    elif defect == "colour":
        other = factory.base(factory.CT, "CT", np.zeros((9, 11, 3), np.uint8), series=middle.SeriesInstanceUID)
        for keyword in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
            setattr(other, keyword, middle.get(keyword))
        datasets[3] = other
    elif defect == "cut":
        middle.PixelData = middle.PixelData[:100]
    return datasets


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("missing", "1 slice is missing between"),
        ("twice", "the same slice is there twice"),
        ("same place", "two slices are at the same place"),
        ("uneven", "unevenly spaced"),
        ("size", "several sizes"),
        ("direction", "orientations are mixed"),
        ("no place", "are mixed in one DICOM series"),
        ("spacing", "no PixelSpacing"),
        ("not finite", "(not finite|has the wrong|damaged)"),
        ("skewed", "at right angles"),
        ("colour", "are mixed in one DICOM series"),
        ("cut", "is cut short, 100 of 198 bytes"),
    ],
)
def test_a_broken_series_is_refused(tmp_path: Path, defect: str, message: str) -> None:
    factory.save(_broken_series(defect), tmp_path)
    with pytest.raises(InputError, match=message):
        read(tmp_path, kind=InputKind.VOLUME)


def test_two_series_in_a_folder(tmp_path: Path) -> None:
    one, two = factory.slices(VOXELS, turned()), factory.slices(VOXELS[:5], turned())
    factory.save(one, tmp_path / "a")
    factory.save(two, tmp_path / "b")
    with pytest.raises(InputError, match=r"holds 2 DICOM series.*--series"):
        read(tmp_path)
    assert read(tmp_path, series=two[0].SeriesInstanceUID).voxels.shape == (5, 9, 7)
    with pytest.raises(InputError, match="has no series 1.2.3"):
        read(tmp_path, series="1.2.3")
    found = find([tmp_path])
    assert sorted(len(item.files) for item in found) == [7, 7]
    assert len({item.name for item in found}) == 2
    assert [item.read().voxels.shape for item in find([tmp_path], series=one[0].SeriesInstanceUID)] == [(11, 9, 7)]


def test_other_objects_in_the_folder_are_passed_over_and_damaged_ones_are_not(tmp_path: Path) -> None:
    folder = factory.save(factory.slices(VOXELS, turned()), tmp_path)
    report = factory.base("1.2.840.10008.5.1.4.1.1.88.11", "SR", np.zeros((1, 1), np.uint8))
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("nothing to read here")
    (item,) = find([folder])
    assert item.read().voxels.shape == VOXELS.shape
    (folder / "broken.dcm").write_bytes((folder / "file-0000.dcm").read_bytes()[:150])
    errors = [item for item in find([folder]) if item.error is not None]
    assert [[path.name for path in item.files] for item in errors] == [["broken.dcm"]]
    with pytest.raises(InputError):
        read(folder)


def test_an_unknown_compression_names_itself(tmp_path: Path) -> None:
    folder = factory.save(factory.slices(VOXELS, turned()), tmp_path)
    for path in folder.iterdir():
        # Video compression in a file of a single slice: valid DICOM that nothing here decodes. Same length as before.
        raw = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
        path.write_bytes(raw)
    with pytest.raises(InputError, match=r"compressed as .*1\.2\.840\.10008\.1\.2\.9"):
        read(folder)


def test_radiographs(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    dataset = factory.base(factory.RADIOGRAPH, "DX", pixels, stored=12)
    dataset.ImagerPixelSpacing = [0.2, 0.3]
    plain, inverted = tmp_path / "plain.dcm", tmp_path / "inverted.dcm"
    dataset.save_as(plain, enforce_file_format=True)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(inverted, enforce_file_format=True)
    image = read(plain)
    assert isinstance(image, Image)
    assert (image.spacing_mm, image.bits) == ((0.2, 0.3), 12)
    np.testing.assert_array_equal(image.pixels, pixels)
    np.testing.assert_array_equal(read(inverted).pixels, 4095 - pixels)


def test_colour_and_films(tmp_path: Path) -> None:
    film = RNG.integers(0, 256, (4, 20, 30, 3)).astype(np.uint8)
    path = tmp_path / "film.dcm"
    factory.base(factory.ULTRASOUND, "US", film).save_as(path, enforce_file_format=True)
    with pytest.raises(InputError, match=r"has 4 frames, expected one.*--frame N \(0 to 3\)"):
        read(path)
    np.testing.assert_array_equal(read(path, frame=2).pixels, film[2])
    with pytest.raises(InputError, match="has no frame 4"):
        read(path, frame=4)


def test_a_slice_for_a_model_that_takes_images(tmp_path: Path) -> None:
    folder = factory.save(factory.slices(VOXELS, turned(), intercept=-1024), tmp_path)
    image = read(folder, kind=InputKind.IMAGE, frame=2)
    assert isinstance(image, Image)
    np.testing.assert_array_equal(image.pixels, VOXELS[:, :, 2].T.astype(int) - 1024)
    single = read(next(iter(sorted(folder.iterdir()))), kind=InputKind.IMAGE)
    assert isinstance(single, Image)
    assert isinstance(read(next(iter(folder.iterdir())), kind=InputKind.VOLUME), Volume)
