"""From files to a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import omlab
from omlab.errors import InputError, UsageError
from omlab.evaluator import Pair
from omlab.geometry import Geometry, Turn
from omlab.plugins import Registry
from omlab.results import Label, Segmentation
from omlab.results.nifti import write_segmentation
from omlab.vocabulary import Kind
from omlab_segmentation.evaluator import SegmentationEvaluator

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
GEOMETRY = Geometry((10, 9, 8), AFFINE)
LIVER = Label(value=1, name="liver")
SPLEEN = Label(value=2, name="spleen")


@pytest.fixture(scope="module")
def evaluator() -> SegmentationEvaluator:
    return SegmentationEvaluator(Registry.discover().card(Kind.EVALUATOR, "segmentation"))


def _options(evaluator: SegmentationEvaluator, **given: object) -> dict[str, object]:
    return {o.name.replace("-", "_"): o.default for o in evaluator.card.options} | given


def _box(low: int, high: int, value: int = 1, geometry: Geometry = GEOMETRY) -> Segmentation:
    labels = np.zeros(geometry.shape, np.uint8)
    labels[low:high, 2:6, 2:6] = value
    return Segmentation(labels=labels, structures=(LIVER, SPLEEN), geometry=geometry)


def _save(folder: Path, name: str, result: Segmentation) -> Path:
    write_segmentation(result, folder / name)
    return folder / name


def test_two_files(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    files = [_save(tmp_path, "a.nii.gz", _box(2, 6)), _save(tmp_path, "b.nii.gz", _box(3, 7))]
    report = evaluator.score_files(files, _options(evaluator))
    assert report.summary["liver/dice"].value == pytest.approx(0.75)  # 3 of 4 and 4 layers
    assert report.summary["liver/iou"].value == pytest.approx(0.6)
    assert report.summary["liver/hd95_mm"].value == pytest.approx(1.0)
    row = next(r for r in report.cases if r["structure"] == "liver")
    assert row["ml_reference"] == pytest.approx(4 * 4 * 4 * 6 / 1000)
    undefined = report.summary["spleen/dice"]
    assert undefined.value is None
    assert undefined.undefined


def test_the_orientation_of_the_file_does_not_matter(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    prediction = _box(2, 6)
    turn = Turn.to(GEOMETRY, "PIL")
    turned = Segmentation(
        labels=np.ascontiguousarray(turn.apply(prediction.labels)), structures=(LIVER,), geometry=turn.target
    )
    reference = _save(tmp_path, "b.nii.gz", _box(3, 7))
    reports = [
        evaluator.score_files([_save(tmp_path, name, p), reference], _options(evaluator))
        for name, p in (("a.nii.gz", prediction), ("t.nii.gz", turned))
    ]
    assert reports[0].summary["liver/dice"].value == reports[1].summary["liver/dice"].value


def test_another_grid_is_refused(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] = 0.5
    other = _box(2, 6, geometry=Geometry(GEOMETRY.shape, shifted))
    with pytest.raises(InputError, match="lie on different grids"):
        evaluator.score_files(
            [_save(tmp_path, "a.nii.gz", other), _save(tmp_path, "b.nii.gz", _box(3, 7))], _options(evaluator)
        )


def test_folders_are_paired_by_name_and_give_an_interval(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    for number in range(5):
        _save(tmp_path / "p", f"case{number}.nii.gz", _box(2, 5 + number % 3))
        _save(tmp_path / "r", f"case{number}.nii.gz", _box(2, 6))
    report = evaluator.score_files([tmp_path / "p", tmp_path / "r"], _options(evaluator))
    again = evaluator.score_files([tmp_path / "p", tmp_path / "r"], _options(evaluator))
    dice = report.summary["liver/dice"]
    assert dice.n == 5
    assert dice.low < dice.value < dice.high
    assert (again.summary["liver/dice"].low, again.summary["liver/dice"].high) == (dice.low, dice.high)
    (tmp_path / "p" / "case0.nii.gz").unlink()
    with pytest.raises(InputError, match="1 files have no partner of their name, first 'case0"):
        evaluator.score_files([tmp_path / "p", tmp_path / "r"], _options(evaluator))


def test_binary_takes_all_labels_together(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    files = [_save(tmp_path, "a.nii.gz", _box(2, 6, 2)), _save(tmp_path, "b.nii.gz", _box(2, 6, 1))]
    assert evaluator.score_files(files, _options(evaluator)).summary["liver/dice"].value == 0
    report = evaluator.score_files(files, _options(evaluator, binary=True))
    assert report.summary["foreground/dice"].value == 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_wrong_number_of_paths(evaluator: SegmentationEvaluator, tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="takes a prediction and a reference"):
        evaluator.score_files([tmp_path] * count, _options(evaluator))


def test_files_that_are_no_label_maps(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    reference = _save(tmp_path, "b.nii.gz", _box(3, 7))
    with pytest.raises(InputError, match="does not exist"):
        evaluator.score_files([tmp_path / "none.nii.gz", reference], _options(evaluator))
    (tmp_path / "text.nii.gz").write_text("no scan")
    with pytest.raises(InputError):
        evaluator.score_files([tmp_path / "text.nii.gz", reference], _options(evaluator))


def test_it_is_in_the_public_api() -> None:
    assert "segmentation" in omlab.list_evaluators()


def test_the_worst_structures_are_drawn_as_the_patient_lies(evaluator: SegmentationEvaluator) -> None:
    """However the file stores its axes, the picture is the same, and the worst comes first."""
    shape = (12, 10, 8)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    prediction, reference = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    reference[2:8, 2:7, 2:6] = 1
    prediction[2:8, 2:7, 2:6] = 1
    prediction[8, 2, 3] = 1
    reference[0:2, 0:2, 0:2] = 2
    pictures = []
    for orientation in ("RAS", "PIL", "LPS"):
        geometry = Geometry(shape, affine)
        turn = Turn.to(geometry, orientation)
        a, b = (
            Segmentation(labels=np.asfortranarray(turn.apply(labels)), structures=(LIVER, SPLEEN), geometry=turn.target)
            for labels in (prediction, reference)
        )
        report = evaluator.score([Pair(name="case", prediction=a, reference=b)], _options(evaluator))
        assert report.illustration is not None
        pictures.append(np.asarray(report.illustration("title")))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])
    missed, extra = (45, 125, 210), (235, 137, 33)
    left, right = pictures[0][84:320, 24:260], pictures[0][84:320, 274:510]
    assert (left == missed).all(-1).any()
    assert not (left == extra).all(-1).any()
    assert (right == extra).all(-1).any()
    perfect = evaluator.score([Pair(name="case", prediction=b, reference=b)], _options(evaluator))
    assert perfect.illustration is None
