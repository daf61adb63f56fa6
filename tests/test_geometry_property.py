"""Wherever a scan lies and however its axes run, a mask comes out of every format at the place where it was put."""

from __future__ import annotations

import tempfile
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

import dicom_factory as factory
from omlab import Label, Segmentation
from omlab.cases import Volume, read
from omlab.geometry import Geometry, Turn
from omlab.results import read_segmentation, write

WITHIN_MM = 0.01
LABEL = Label(value=3, name="target")


@st.composite
def affines(draw: st.DrawFn, *, dicom: bool = False) -> np.ndarray:
    """Axes in any order and direction, turned by any angle, spaced unevenly; for DICOM the third axis follows from the
    first two, or leans as with a tilted gantry."""
    unit = st.floats(-1, 1)
    quaternion = np.array(draw(st.tuples(unit, unit, unit, unit)))
    quaternion[0] = abs(quaternion[0]) + 1e-3  # never of length zero
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    if draw(st.booleans()):
        rotation = np.eye(3)
    order = draw(st.permutations(range(3)))
    axes = rotation[:, order] * draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    if dicom:
        axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
        axes[:, 2] += axes[:, 1] * draw(st.sampled_from([0.0, 0.0, 0.3, -0.2]))
    affine = np.eye(4)
    affine[:3, :3] = axes * draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return affine


SHAPES = st.tuples(st.integers(4, 12), st.integers(4, 12), st.integers(2, 9))


def _mask(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """A crooked blob with holes, that no flip leaves where it is."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    a, b = np.sort(np.array([[rng.integers(0, n), rng.integers(0, n)] for n in shape]), axis=1).T
    box = tuple(slice(i, j + 1) for i, j in zip(a, b, strict=True))
    labels[box] = LABEL.value * (rng.random(labels[box].shape) < 0.8)
    labels[tuple(a)] = LABEL.value
    return labels


def _centre(affine: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(labels == LABEL.value).mean(axis=0) + affine[:3, 3]


def _of_nifti(path: Path) -> np.ndarray:
    image = nibabel.load(path)
    return nibabel.affines.apply_affine(image.affine, np.argwhere(np.asanyarray(image.dataobj) == LABEL.value)).mean(0)


def _of_seg(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    binary = dataset.SegmentationType == "BINARY"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    down, right = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    points = []
    frames = highdicom.imread(path).get_frames()
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame == (1 if binary else LABEL.value)):
            points.append(origin + turn[0] * column * right + turn[1] * row * down)
    return np.mean(points, axis=0) * (-1, -1, 1)


def _of_structures(path: Path) -> np.ndarray:
    """Centroid of the polygons, weighted by their areas."""
    areas, centres = [], []
    for contour in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        edges = np.cross(points - points[0], np.roll(points, -1, axis=0) - points[0])
        normal = edges.sum(axis=0) / np.linalg.norm(edges.sum(axis=0))
        parts = edges @ normal / 2
        triangles = (points[0] + points + np.roll(points, -1, axis=0)) / 3
        areas.append(parts.sum())
        centres.append(parts @ triangles / parts.sum())
    return np.average(centres, axis=0, weights=areas) * (-1, -1, 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(affine=affines(), shape=SHAPES, seed=st.integers(0, 2**16))
def test_nifti(affine: np.ndarray, shape: tuple[int, int, int], seed: int) -> None:
    labels = _mask(shape, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = folder / "scan.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.int16), affine), scan)
        case = read(scan)
        result = Segmentation(labels=labels, structures=(LABEL,), geometry=case.geometry)
        path = write(result, case, folder / "out", formats=["nifti"])["nifti"]
        expected = _centre(affine, labels)
        assert np.abs(_of_nifti(path) - expected).max() < WITHIN_MM
        back = read_segmentation(path)
        assert back.geometry is not None
        assert np.abs(_centre(back.geometry.affine, back.labels) - expected).max() < WITHIN_MM


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(affine=affines(dicom=True), shape=SHAPES, seed=st.integers(0, 2**16), packed=st.booleans())
def test_dicom(affine: np.ndarray, shape: tuple[int, int, int], seed: int, packed: bool) -> None:
    labels = _mask(shape, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = labels.astype(np.uint16)
        if packed and np.allclose(affine[:3, 2] @ affine[:3, :2], 0, atol=1e-6):
            order = np.random.default_rng(seed).permutation(shape[2]).tolist()
            (folder / "scan").mkdir()
            factory.enhanced(stored, affine, order=order).save_as(folder / "scan/one.dcm", enforce_file_format=True)
            case = read(folder / "scan/one.dcm")
        else:
            case = read(factory.save(factory.slices(stored, affine), folder / "scan", seed=seed))
        assert isinstance(case, Volume)
        # The reader may run slices the other way: what counts is where the values are.
        found = case.voxels.astype(np.uint8)
        expected = _centre(affine, labels)
        assert np.abs(_centre(case.geometry.affine, found) - expected).max() < WITHIN_MM
        result = Segmentation(labels=found, structures=(LABEL,), geometry=case.geometry)
        written = write(result, case, folder / "a", formats=["dicom-seg", "rtstruct", "nifti"])
        binary = write(result, case, folder / "b", formats=["dicom-seg-binary"])["dicom-seg-binary"]
        assert np.abs(_of_seg(written["dicom-seg"]) - expected).max() < WITHIN_MM
        assert np.abs(_of_seg(binary) - expected).max() < WITHIN_MM
        assert np.abs(_of_structures(written["rtstruct"]) - expected).max() < WITHIN_MM
        assert np.abs(_of_nifti(written["nifti"]) - expected).max() < WITHIN_MM


@settings(max_examples=300, deadline=None)
@given(affine=affines(), shape=SHAPES, codes=st.sampled_from(["RAS", "LPS", "SPR", "AIL", "PSL"]))
def test_turns_are_those_of_nibabel_and_can_be_undone(
    affine: np.ndarray, shape: tuple[int, int, int], codes: str
) -> None:
    geometry = Geometry(shape, affine)
    array = np.arange(np.prod(shape)).reshape(shape)
    turn = Turn.to(geometry, codes)
    turned = turn.apply(array)
    np.testing.assert_array_equal(turn.undo(turned), array)
    # Every value stays at its place in the patient.
    index = np.unravel_index(17 % array.size, shape)
    place = np.argwhere(turned == array[index])[0]
    np.testing.assert_allclose(turn.target.to_world(place), geometry.to_world(index), atol=1e-6)
    wanted = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    np.testing.assert_array_equal(nibabel.apply_orientation(array, wanted), turned)
