"""A small tree of WORD's layout, made of a real CT and its labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import omlab
from omlab.cli.main import main
from omlab.datasets import verify
from omlab.geometry import Geometry
from omlab.results import Label, Segmentation
from omlab.results.nifti import write_segmentation

CT = Path(__file__).resolve().parents[4] / "shared" / "data" / "totalsegmentator_example" / "example_ct_sm.nii.gz"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    if not CT.is_file():
        pytest.skip("needs the folder of real scans beside the project")
    geometry = omlab.read(CT).geometry
    for part, numbers in (("Tr", (2, 3)), ("Val", (1,)), ("Ts", (25, 40))):
        for number in numbers:
            for kind in ("images", "labels"):
                (tmp_path / f"{kind}{part}").mkdir(exist_ok=True)
            name = f"word_{number:04d}.nii.gz"
            shutil.copy(CT, tmp_path / f"images{part}" / name)
            write(tmp_path / f"labels{part}" / name, geometry, top=16)
    return tmp_path


def write(path: Path, geometry: Geometry, *, top: int) -> None:
    labels = np.zeros(geometry.shape, np.uint8)
    labels[: top + 1] = np.arange(top + 1, dtype=np.uint8)[:, None, None]
    structures = tuple(Label(value=v, name=str(v)) for v in range(1, top + 1))
    write_segmentation(Segmentation(labels=labels, structures=structures, geometry=geometry), path)


def test_cases_have_the_sixteen_organs(root: Path) -> None:
    bound = omlab.load_dataset(f"word:{root}")
    assert [i.split for i in bound.items()] == ["train", "train", "val", "test", "test"]
    assert [i.name[-4:] for i in bound.items()] == ["0002", "0003", "0001", "0025", "0040"]
    assert len(bound.classes) == 16 and bound.classes[7] == "pancreas" and bound.size() == 5
    truth = next(bound.items("test")).truth()
    assert truth.counts()[16] == 101 * 30
    found = verify(bound)
    assert {p.kind for p in found.problems if p.error} == {
        "count"
    } and found.read == 5  # whole but for the other 145 scans


def test_faults_are_found(root: Path) -> None:
    geometry = omlab.read(CT).geometry
    shifted = np.array(geometry.affine)
    shifted[0, 3] += 3
    write(root / "labelsTr" / "word_0002.nii.gz", Geometry(geometry.shape, shifted), top=16)
    write(root / "labelsTr" / "word_0003.nii.gz", geometry, top=17)
    (root / "labelsVal" / "word_0001.nii.gz").unlink()
    (root / "imagesTs" / "word_0025.nii.gz").unlink()
    shutil.copy(CT, root / "imagesVal" / "word_0003.nii.gz")
    found: dict[str, str] = {}
    for problem in verify(omlab.load_dataset(f"word:{root}")).problems:
        if problem.kind != "count":
            found.setdefault(f"{problem.kind} {problem.where}", problem.what)
    assert found["grid word_0002"] == "the reference lies 3 mm beside the scan"
    assert "has the values 17" in found["reference word_0003"]
    assert "reference imagesVal/word_0001.nii.gz" in found and "extra labelsTs/word_0025.nii.gz" in found
    assert found["leak word_0003"] == "is in both train and val"


def test_it_is_told_how_to_obtain_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "fetch", "word"]) == 1
    told = capsys.readouterr().out
    assert "GPL-3.0-only" in told and "password" in told
    assert main(["dataset", "show", "word"]) == 0
    assert "AbdomenAtlas contains WORD" in capsys.readouterr().out
