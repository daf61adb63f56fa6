"""From files to a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import omlab
from omlab.cases import Image, Volume
from omlab.errors import InputError, UsageError
from omlab.evaluator import Pair
from omlab.geometry import Geometry, Turn
from omlab.plugins import Registry
from omlab.results import Label, Segmentation
from omlab.results.nifti import write_segmentation
from omlab.vocabulary import Kind
from omlab_segmentation import averaging
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
    assert report.table == [
        ["structure", "Dice", "IoU", "HD95 in mm", "NSD at 1 mm", "cases"],
        ["liver", "0.7500", "0.6000", "1.0000", f"{report.summary['liver/nsd'].value:.4f}", "1"],
        ["spleen", "undefined", "undefined", "undefined", "undefined", "0"],
        ["mean of structures", "0.7500", "0.6000", "1.0000", f"{report.summary['liver/nsd'].value:.4f}", "1"],
    ]
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
    told = []
    omlab.score("segmentation", [tmp_path / "p", tmp_path / "r"], listener=told.append)
    assert [(event.what, event.done, event.total) for event in told][::4] == [("case0", 0, 5), ("case4", 4, 5)]
    (tmp_path / "p" / "case0.nii.gz").unlink()
    with pytest.raises(InputError, match="1 files have no partner of their name, first 'case0"):
        evaluator.score_files([tmp_path / "p", tmp_path / "r"], _options(evaluator))


def test_structures_count_alike(evaluator: SegmentationEvaluator) -> None:
    """However many cases they are in; cases are drawn whole, and for both of two reports alike."""
    rows = [
        {"case": case, "structure": name, "dice": dice, "iou": dice, "hd95_mm": 1.0, "nsd": "nan"}
        for name, values in (("liver", (0.9, 0.8, 0.7, 0.6)), ("spleen", (0.1, "nan", "nan", "nan")))
        for case, dice in zip("abcd", values, strict=True)
    ]
    found = averaging.value(rows, "dice", _options(evaluator))
    assert found.value == pytest.approx((0.75 + 0.1) / 2)
    assert found.n == 4
    assert found.low < found.value < found.high <= 0.9  # draws without case a have the liver alone
    assert averaging.value(rows, "nsd", _options(evaluator)).undefined
    assert averaging.value([*rows, {**rows[0], "case": "e", "hd95_mm": "inf"}], "hd95_mm", {}).value == np.inf
    better = [{**row, "dice": 0.05 + float(row["dice"])} for row in rows]
    figures = evaluator.resampled([{"cases": rows}, {"cases": better}], rounds=50, seed=0)
    assert set(figures) == {f"mean of structures/{name}" for name in ("dice", "iou", "hd95_mm")}
    dice = figures["mean of structures/dice"]
    assert dice.cases == 4
    assert np.allclose(dice.values, [0.425, 0.475])
    assert np.allclose(dice.draws[1] - dice.draws[0], 0.05)
    assert evaluator.resampled([{"cases": rows[:4]}] * 2, rounds=5, seed=0) == {}  # one structure has no mean over some


def test_binary_takes_all_labels_together(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    files = [_save(tmp_path, "a.nii.gz", _box(2, 6, 2)), _save(tmp_path, "b.nii.gz", _box(2, 6, 1))]
    assert evaluator.score_files(files, _options(evaluator)).summary["liver/dice"].value == 0
    report = evaluator.score_files(files, _options(evaluator, binary=True))
    assert report.summary["foreground/dice"].value == 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_wrong_number_of_paths(evaluator: SegmentationEvaluator, tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="takes a prediction and a reference"):
        evaluator.score_files([tmp_path] * count, _options(evaluator))


@pytest.mark.parametrize("given", [{"rounds": 0}, {"tolerance_mm": -1.0}, {"tolerance_mm": float("nan")}])
def test_options_without_sense(evaluator: SegmentationEvaluator, given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="rounds of 1 or more"):
        evaluator.score([], _options(evaluator, **given))


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


def _volume(voxels: np.ndarray, geometry: Geometry) -> Volume:
    return Volume(name="case", voxels=voxels, geometry=geometry, modality="MR")


def test_outlines_lie_over_the_scan_however_it_is_stored(evaluator: SegmentationEvaluator) -> None:
    """The scan under the outlines is that of the case, in the patient's orientation; of another grid it is left out."""
    shape = (40, 36, 8)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    prediction, reference = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    reference[10:20, 12:20, 3:5] = 1
    prediction[12:20, 12:20, 3:5] = 1
    voxels = np.zeros(shape, np.int16)
    voxels[10:20, 12:20, 3:5] = 100  # the structure is bright
    voxels[0, 0, :] = 100  # and so is a corner of the patient: right, posterior in RAS is left, posterior here
    pictures = []
    for mask_order, scan_order in (("RAS", "RAS"), ("PIL", "LPS"), ("LPS", "SAR")):
        turns = [Turn.to(Geometry(shape, affine), order) for order in (mask_order, scan_order)]
        a, b = (
            Segmentation(labels=np.ascontiguousarray(turns[0].apply(m)), structures=(LIVER,), geometry=turns[0].target)
            for m in (prediction, reference)
        )
        case = _volume(turns[1].apply(voxels), turns[1].target)
        report = evaluator.score(
            [Pair(name="case", prediction=a, reference=b, scan=lambda case=case: case)], _options(evaluator)
        )
        pictures.append(np.asarray(report.illustration("title")))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])
    panel = pictures[0][84:320, 24:260].astype(int)
    grey = panel.max(axis=-1) - panel.min(axis=-1) < 12
    assert (grey & (panel.mean(axis=-1) > 240)).sum() > 2000  # the bright structure, under no colour
    blue, orange = panel[..., 2] - panel[..., 0] > 60, panel[..., 0] - panel[..., 2] > 60
    # 10 voxels of 2 mm wide in 64 mm, the missed ones on the patient's left side as radiologists look at it: the right.
    columns = [np.flatnonzero(found.any(axis=0)) for found in (blue, orange)]
    assert columns[0].max() > columns[1].max() + 10 and abs(columns[0].min() - columns[1].min()) < 6
    elsewhere = Geometry(shape, affine + np.eye(4, k=3) * 7)
    report = evaluator.score(
        [Pair(name="case", prediction=a, reference=b, scan=lambda: _volume(voxels, elsewhere))], _options(evaluator)
    )
    masks_alone = np.asarray(report.illustration("title"))
    assert (masks_alone[84:320, 24:260] == (150, 150, 156)).all(-1).any()


def test_outlines_over_an_image(evaluator: SegmentationEvaluator) -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:80] = 1
    pixels = np.full((90, 120, 3), (20, 160, 60), np.uint8)
    pairs = [
        Pair(
            name="image", prediction=Segmentation(labels=np.roll(mask, 5, 1), structures=(LIVER,)),
            reference=Segmentation(labels=mask, structures=(LIVER,)), scan=lambda: Image(name="image", pixels=pixels),
        )
    ]  # fmt: skip
    shown = np.asarray(evaluator.score(pairs, _options(evaluator)).illustration("title"))[84:320, 24:260]
    assert (shown == (20, 160, 60)).all(-1).mean() > 0.4
    assert (shown == (20, 160, 60)).all(-1)[118, 118]


def test_a_case_that_does_not_fit_is_left_out_where_somebody_is_told(evaluator: SegmentationEvaluator) -> None:
    turned = AFFINE.copy()
    turned[:2, :2] = [[0.8, -1.2], [0.6, 1.6]]
    other = _box(2, 6, geometry=Geometry(GEOMETRY.shape, turned))
    told: list[str] = []
    pairs = [
        Pair(name="bad", prediction=other, reference=_box(2, 6), refused=lambda error: told.append(error.message)),
        Pair(name="good", prediction=_box(2, 6), reference=_box(2, 6)),
    ]
    report = evaluator.score(pairs, _options(evaluator))
    assert {row["case"] for row in report.cases} == {"good"}
    assert len(told) == 1 and "the prediction is turned or stretched: corners lie up to" in told[0]
    with pytest.raises(InputError, match="different grids: the prediction is turned"):
        evaluator.score([Pair(name="bad", prediction=other, reference=_box(2, 6))], _options(evaluator))


def test_the_difference_of_grids_is_told(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    reference = _save(tmp_path, "b.nii.gz", _box(3, 7))
    shifted, wider = AFFINE.copy(), AFFINE.copy()
    shifted[0, 3], wider[2, 2] = 0.5, 4.0
    for geometry, told in (
        (Geometry(GEOMETRY.shape, shifted), "the prediction lies 0.5 mm beside the reference"),
        (Geometry(GEOMETRY.shape, wider), "the prediction has a spacing of 1 x 2 x 4 mm, the reference 1 x 2 x 3 mm"),
        (Geometry((9, 9, 8), AFFINE), "the prediction has 9 x 9 x 8 voxels, the reference 10 x 9 x 8"),
    ):
        with pytest.raises(InputError, match=told):
            evaluator.score_files([_save(tmp_path, "a.nii.gz", _box(2, 6, geometry=geometry)), reference], {
                **_options(evaluator)
            })  # fmt: skip


def test_a_tolerance_of_one_voxel_holds_one_voxel(evaluator: SegmentationEvaluator, tmp_path: Path) -> None:
    """A file holds 0.8 mm as 0.800000012; a surface one voxel off is within 0.8 mm all the same."""
    geometry = Geometry((20, 20, 20), np.diag([0.8, 0.8, 3.0, 1.0]))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[5:12, 5:12, 5:12] = 1
    files = [
        _save(tmp_path, name, Segmentation(labels=given, structures=(), geometry=geometry))
        for name, given in (("a.nii.gz", np.roll(labels, 1, 0)), ("b.nii.gz", labels))
    ]
    report = evaluator.score_files(files, _options(evaluator, tolerance_mm=0.8))
    assert report.summary["label 1/nsd"].value == 1.0
    assert report.summary["label 1/hd95_mm"].value == 0.8


def test_files_without_names_and_without_voxels_follow_the_rule(
    evaluator: SegmentationEvaluator, tmp_path: Path
) -> None:
    empty = Segmentation(labels=np.zeros(GEOMETRY.shape, np.uint8), structures=(), geometry=GEOMETRY)
    full = Segmentation(labels=_box(2, 6).labels, structures=(), geometry=GEOMETRY)
    for folder in ("p", "r"):
        _save(tmp_path / folder, "healthy.nii.gz", empty)
        _save(tmp_path / folder, "ill.nii.gz", full)
    folders = [tmp_path / "p", tmp_path / "r"]
    report = evaluator.score_files(folders, _options(evaluator))
    assert report.summary["label 1/dice"].n == 1 and len(report.cases) == 2
    assert np.isnan(next(row["dice"] for row in report.cases if row["case"] == "healthy"))
    assert evaluator.score_files(folders, _options(evaluator, both_empty="one")).summary["label 1/dice"].n == 2
    alone = evaluator.score_files([f / "healthy.nii.gz" for f in folders], _options(evaluator))
    assert alone.summary["label 1/dice"].value is None and alone.summary["label 1/dice"].undefined
    _save(tmp_path / "p", "ill.nii.gz", empty)
    (tmp_path / "p" / "healthy.nii.gz").unlink(), (tmp_path / "r" / "healthy.nii.gz").unlink()
    for number in range(2):
        for folder in ("p", "r"):
            _save(tmp_path / folder, f"more{number}.nii.gz", full)
    report = evaluator.score_files(folders, _options(evaluator))
    assert report.summary["label 1/hd95_mm"].value == np.inf
    assert any("one side is empty in 1 of 3 cases" in text and "it is 0 mm" in text for text in report.warnings)
    _save(tmp_path / "p", "ill.nii.gz", Segmentation(labels=full.labels * 255, structures=(), geometry=GEOMETRY))
    assert any("use --binary" in text for text in evaluator.score_files(folders, _options(evaluator)).warnings)
