"""The overlap rule, the submission as another library reads it, and small trees of the layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import omlab
from omlab.datasets import verify
from omlab.errors import InputError, UsageError
from omlab.geometry import Geometry
from omlab.results import Label, Segmentation
from omlab.results.nifti import write_segmentation
from omlab_segrap2023.structures import ORGANS, TUMOURS, fuse, mask, names_of, tolerance_mm
from omlab_segrap2023.submission import write, write_fused

ANGLE = np.deg2rad(12)
#: An oblique grid, axes in the order L, A, S: what a reader of NIfTI gives for such a scan.
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.array(
    [[-np.cos(ANGLE), np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]
) @ np.diag([0.8, 0.9, 3.0])  # fmt: skip
AFFINE[:3, 3] = (40, -70, 120)
GRID = Geometry((14, 12, 10), AFFINE)


def fused() -> np.ndarray:
    """Every value of the map, 0 to 54."""
    values = np.arange(14 * 12 * 10) % 55
    return values.reshape(GRID.shape).astype(np.uint8)


def test_the_rule_has_45_organs_54_values_and_nine_overlaps() -> None:
    assert len(ORGANS) == 45 and {v for values in ORGANS.values() for v in values} == set(range(1, 55))
    names = names_of("oar")
    outside = {value: [n for n in name.split(" + ") if n != "Brain"] for value, name in names.items()}
    nested = {"Eye_L", "Eye_R", "Larynx"}
    parts = {"Lens_L", "Lens_R", "Larynx_Glottic", "Larynx_Supraglot", "IAC_L", "IAC_R", "Cochlea_L", "Cochlea_R"}
    both = {
        value
        for value, of in outside.items()
        if len(of) == 2 and not (set(of) & parts and set(of) & (nested | {"MiddleEar_L", "MiddleEar_R"}))
    }
    assert both == {6, 7, 20, 21, 24, 25, 30, 31, 51}
    assert names[6] == "Brain + TemporalLobe_L + Hippocampus_L" and names[51] == "Larynx + PharynxConst"
    assert (tolerance_mm("Larynx"), tolerance_mm("OralCavity"), tolerance_mm("GTVp")) == (2.0, 3.0, 1.0)
    assert list(ORGANS)[:9] == [
        "Brain", "BrainStem", "Chiasm", "TemporalLobe_L", "TemporalLobe_R", "Hippocampus_L", "Hippocampus_R", "Eye_L",
        "Eye_R",
    ]  # fmt: skip


def test_fusing_undoes_splitting() -> None:
    labels = fused()
    back, odd = fuse({name: mask(labels, name) for name in ORGANS})
    assert odd == 0 and np.array_equal(back, labels)
    tumours = (labels % 3).astype(np.uint8)
    back, odd = fuse({name: mask(tumours, name, "gtv") for name in TUMOURS}, "gtv")
    assert odd == 0 and np.array_equal(back, tumours)


def test_overlaps_without_a_value_are_counted() -> None:
    masks = {name: np.zeros((4, 4, 4), bool) for name in ("Eye_L", "Lens_L", "Thyroid", "Trachea")}
    masks["Lens_L"][0, 0, :2] = True  # a lens outside of its eye
    masks["Thyroid"][2], masks["Trachea"][2, 0] = True, True
    labels, odd = fuse(masks)
    assert odd == 2 + 4 and set(np.unique(labels)) >= {12, 53, 54}
    with pytest.raises(UsageError, match="'Nose' is no structure"):
        fuse({"Nose": np.zeros((2, 2, 2), bool)})
    with pytest.raises(UsageError, match="2 shapes"):
        fuse({"Brain": np.zeros((2, 2, 2), bool), "Chiasm": np.zeros((2, 2, 3), bool)})
    with pytest.raises(InputError, match="has the value 60"):
        mask(np.full((2, 2), 60, np.uint8), "Brain")


@pytest.mark.parametrize(("task", "structures"), [("oar", ORGANS), ("gtv", TUMOURS)])
def test_the_submission_is_what_another_library_reads(tmp_path: Path, task: str, structures: dict) -> None:
    sitk = pytest.importorskip("SimpleITK")
    labels = fused() if task == "oar" else (fused() % 3).astype(np.uint8)
    path = tmp_path / "segrap_0000.mha"
    write_fused(labels, GRID, path, task)
    image = sitk.ReadImage(str(path))
    found = sitk.GetArrayFromImage(image)
    assert found.shape == (len(structures), 10, 12, 14) and found.dtype == np.uint8
    for channel, name in enumerate(structures):
        assert np.array_equal(found[channel], mask(labels, name, task).transpose(2, 1, 0)), name
    write_segmentation(Segmentation(labels=labels, structures=(), geometry=GRID), tmp_path / "same.nii.gz")
    scan = sitk.ReadImage(str(tmp_path / "same.nii.gz"))
    point = (3, 5, 7)
    there = image.TransformIndexToPhysicalPoint((*point, 1))
    assert there[:3] == pytest.approx(scan.TransformIndexToPhysicalPoint(point), abs=1e-4)
    assert image.GetSpacing()[:3] == pytest.approx(scan.GetSpacing(), abs=1e-5)


def test_a_submission_of_other_masks_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 masks were given, task 'gtv' has 2"):
        write([np.zeros(GRID.shape, bool)], GRID, tmp_path / "a.mha", "gtv")
    with pytest.raises(UsageError, match="a mask has the shape"):
        write([np.zeros((2, 2, 2), bool)], GRID, tmp_path / "a.mha", "gtv")
    assert not list(tmp_path.iterdir())


def put(path: Path, labels: np.ndarray, geometry: Geometry = GRID) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structures = tuple(Label(value=v, name=str(v)) for v in range(1, 55))
    write_segmentation(Segmentation(labels=labels.astype(np.uint8), structures=structures, geometry=geometry), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    labels = fused()
    for number in (0, 7):
        folder = tmp_path / "SegRap2023_Training" / f"segrap_{number:04d}"
        put(folder / "image.nii.gz", labels), put(folder / "image_contrast.nii.gz", labels)
        for name in ORGANS:
            put(folder / f"{name}.nii.gz", mask(labels, name))
        for name in TUMOURS:
            put(folder / f"{name}.nii.gz", mask(labels % 3, name, "gtv"))
    put(tmp_path / "SegRap2023_Validation" / "segrap_0003" / "image.nii.gz", labels)
    put(tmp_path / "SegRap2023_Validation" / "segrap_0003" / "image_contrast.nii.gz", labels)
    return tmp_path


def test_single_files_and_fused_maps_give_the_same_reference(root: Path) -> None:
    train, _, val = omlab.load_dataset(f"segrap2023:{root}").items()
    assert (train.split, val.split, val.truth()) == ("train", "val", None)
    truth = train.truth()
    assert np.array_equal(truth.labels, fused()) and not truth.measurements and len(train.files) == 46
    put(root / "labels" / "SegRap_Task001_OARs" / "segrap_0000.nii.gz", fused())
    item = next(omlab.load_dataset(f"segrap2023:{root}").items())
    assert len(item.files) == 2 and np.array_equal(item.truth().labels, fused())
    for text in ("structure=Larynx", "image=contrast,structure=Larynx"):
        one, other = omlab.load_dataset(f"segrap2023,{text}:{root}").items("train")
        assert one.truth().counts() == other.truth().counts() == {1: int(mask(fused(), "Larynx").sum())}
        assert ("contrast" in one.files[0].name) == ("contrast" in text)
    gtv = next(omlab.load_dataset(f"segrap2023,task=gtv:{root}").items())
    assert [s.name for s in gtv.truth().structures] == ["GTVp", "GTVnd"]
    with pytest.raises(UsageError, match="task 'gtv' has no structure 'Larynx'"):
        list(omlab.load_dataset(f"segrap2023,task=gtv,structure=Larynx:{root}").items())


def test_faults_are_found(root: Path) -> None:
    assert {p.kind for p in verify(omlab.load_dataset(f"segrap2023:{root}")).problems if p.error} == {"count"}
    patient = root / "SegRap2023_Training" / "segrap_0007"
    (patient / "Thyroid.nii.gz").unlink(), (patient / "image_contrast.nii.gz").unlink()
    shifted = np.array(AFFINE)
    shifted[2, 3] += 3
    put(patient / "Trachea.nii.gz", mask(fused(), "Trachea"), Geometry(GRID.shape, shifted))
    found = {(p.kind, p.where): p.what for p in verify(omlab.load_dataset(f"segrap2023:{root}")).problems}
    assert found["missing", "segrap_0007"] == "has 44 of 45 structures of task 'oar', not Thyroid"
    assert ("missing", "segrap_0007/image_contrast.nii.gz") in found
    assert "another grid" in found["reference", "segrap_0007"]
    with pytest.raises(InputError, match="holds no folder segrap_NNNN"):
        list(omlab.load_dataset(f"segrap2023:{patient}").items())
