"""NRRD and MetaImage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")
nibabel = pytest.importorskip("nibabel")

import omlab  # noqa: E402
from omlab.cases import find, read  # noqa: E402
from omlab.errors import InputError  # noqa: E402
from omlab.results import read_segmentation  # noqa: E402
from omlab.vocabulary import InputKind  # noqa: E402

#: Along i, j, k; turned about the third axis, and one axis runs the other way.
SHAPE, SPACING, ORIGIN = (7, 6, 5), (0.8, 1.5, 3.0), (-12.0, 40.0, 7.5)
DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)
ENDINGS = ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]


def _image(voxels: np.ndarray) -> sitk.Image:
    """Of an array [z, y, x]."""
    image = sitk.GetImageFromArray(voxels)
    if image.GetDimension() == 3:
        image.SetSpacing(SPACING)
        image.SetOrigin(ORIGIN)
        image.SetDirection(DIRECTION)
    return image


def _voxels(dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, SHAPE[::-1]).astype(dtype)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ENDINGS)
def test_they_are_where_nifti_has_them(name: str, compressed: bool, tmp_path: Path) -> None:
    """The same image as NIfTI by SimpleITK, read by nibabel: voxel for voxel at the same place."""
    image = _image(_voxels())
    sitk.WriteImage(image, str(tmp_path / name), compressed)
    sitk.WriteImage(image, str(tmp_path / "b.nii"))
    case, other = read(tmp_path / name), nibabel.load(tmp_path / "b.nii")
    assert np.array_equal(case.voxels, np.asarray(other.dataobj))
    assert case.voxels.dtype == np.int16
    assert np.allclose(case.geometry.affine, other.affine, atol=1e-5)
    assert case.geometry.same_grid(read(tmp_path / "b.nii").geometry)
    assert case.voxels.flags.f_contiguous  # as NIfTI gives them: i runs fastest


def test_only_the_header_is_a_case(tmp_path: Path) -> None:
    sitk.WriteImage(_image(_voxels()), str(tmp_path / "scan.mhd"))
    assert (tmp_path / "scan.raw").exists()
    assert [item.name for item in find([tmp_path], kinds={InputKind.VOLUME})] == ["scan"]


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_of_four_dimensions_one_volume_is_chosen(name: str, tmp_path: Path) -> None:
    voxels = np.stack([_voxels("float32") + step for step in range(3)])
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=False), str(tmp_path / name))
    with pytest.raises(InputError, match=r"4 dimensions \(7, 6, 5, 3\), expected one volume"):
        read(tmp_path / name)
    with pytest.raises(InputError, match="has no volume 3"):
        read(tmp_path / name, frame=3)
    assert np.array_equal(read(tmp_path / name, frame=2).voxels, voxels[2].T)
    colours = np.stack([_voxels("uint8")] * 2 + [_voxels("uint8") // 2], -1)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / name))
    with pytest.raises(InputError, match="3 numbers a voxel, expected one volume"):
        read(tmp_path / name)
    assert np.array_equal(read(tmp_path / name, frame=2).voxels, colours[..., 2].T)


@pytest.mark.parametrize("name", ENDINGS)
def test_bad_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    sitk.WriteImage(_image(_voxels()), str(path))
    data = next((p for p in tmp_path.iterdir() if p != path), path)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{name}: is damaged or cut short"):
        read(path)
    if data != path:
        data.unlink()
        with pytest.raises(InputError, match="a header with the voxels in a file beside it needs both"):
            read(path)
    sitk.WriteImage(_image(_voxels("uint8")[0]), str(path))
    with pytest.raises(InputError, match=r"2 dimensions \(7, 6\), expected 3"):
        read(path)
    with pytest.raises(InputError, match="a 3D volume, expected PNG"):
        read(path, kind=InputKind.IMAGE)


def test_label_maps_with_the_names_of_slicer(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE[::-1], np.uint8)
    labels[1, 2:4, 3:5], labels[3], labels[4, 0, 0] = 1, 2, 7
    image = _image(labels)
    for key, value in {
        "Segment0_Name": "liver", "Segment0_LabelValue": "2", "Segment0_Layer": "0", "Segment0_Color": "1 0.5 0",
        "Segment4_Name": "spleen", "Segment4_LabelValue": "1",
    }.items():  # fmt: skip
        image.SetMetaData(key, value)
    path = tmp_path / "case.seg.nrrd"
    sitk.WriteImage(image, str(path))
    found = read_segmentation(path)
    assert np.array_equal(found.labels, labels.T)
    assert [(one.value, one.name) for one in found.structures] == [(1, "spleen"), (2, "liver"), (7, "label 7")]
    assert found.structures[1].colour == (255, 128, 0)
    sitk.WriteImage(image, str(tmp_path / "case.mha"))
    assert [one.name for one in read_segmentation(tmp_path / "case.mha").structures][-1] == "label 7"
    report = omlab.score("segmentation", [path, tmp_path / "case.mha"])
    assert report.summary["liver/dice"].value == 1
    for key, value, message in (
        ("Segment4_Layer", "1", "case.seg.nrrd: its segments overlap"),
        ("Segment4_LabelValue", "one", "case.seg.nrrd: its header says Segment4_LabelValue 'one', expected a whole"),
    ):
        image.SetMetaData(key, value)
        sitk.WriteImage(image, str(path))
        with pytest.raises(InputError, match=message):
            read_segmentation(path)


@pytest.mark.parametrize(("space", "sign"), [("right-anterior-superior", 1), ("left-posterior-superior", -1)])
def test_the_space_of_a_header_counts(space: str, sign: int, tmp_path: Path) -> None:
    """3D Slicer writes either; a case is RAS."""
    header = (
        f"NRRD0004\ntype: int16\ndimension: 3\nspace: {space}\nsizes: 2 3 4\n"
        "space directions: (1,0,0) (0,2,0) (0,0,3)\n"
        "kinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (5,6,7)\n\n"
    )
    voxels = np.arange(24, dtype="<i2")
    (tmp_path / "a.nrrd").write_bytes(header.encode() + voxels.tobytes())
    case = read(tmp_path / "a.nrrd")
    assert np.allclose(
        case.geometry.affine, [[sign, 0, 0, 5 * sign], [0, 2 * sign, 0, 6 * sign], [0, 0, 3, 7], [0, 0, 0, 1]]
    )
    assert np.array_equal(case.voxels, voxels.reshape(4, 3, 2).T)
