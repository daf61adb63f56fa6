"""Metrics against scikit-learn's, and tables that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from omlab.cli.main import main
from omlab.errors import InputError
from omlab.evaluator import Pair
from omlab.loading import options_of
from omlab.plugins import Registry
from omlab.results import Classification
from omlab.vocabulary import Kind
from omlab_classification import metrics, pictures
from omlab_classification.evaluator import ClassificationEvaluator


def _sample(count: int = 60, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    wanted = generator.integers(0, classes, count)
    logits = generator.standard_normal((count, classes)) + 1.5 * np.eye(classes)[wanted]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.round(1) + 1e-9, wanted  # rounded, so that scores tie


def test_values_equal_scikit_learn() -> None:
    probabilities, wanted = _sample()
    truth = np.eye(4, dtype=bool)[wanted]
    found, each = metrics.overall(probabilities, truth, exclusive=True, threshold=0.5, bins=15)
    best = probabilities.argmax(axis=1)
    assert found["auc"] == pytest.approx(
        np.mean([sk.roc_auc_score(truth[:, c], probabilities[:, c]) for c in range(4)])
    )
    precision = [sk.average_precision_score(truth[:, c], probabilities[:, c]) for c in range(4)]
    assert each["average_precision"] == pytest.approx(precision)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(wanted, best))
    assert found["f1"] == pytest.approx(sk.f1_score(wanted, best, average="macro"))
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(wanted, best))
    assert found["quadratic_kappa"] == pytest.approx(sk.cohen_kappa_score(wanted, best, weights="quadratic"))


def test_several_classes_an_image() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random((50, 3)) < 0.3
    probabilities = np.clip(0.5 * truth + 0.6 * generator.random((50, 3)), 0, 1)
    found, _ = metrics.overall(probabilities, truth, exclusive=False, threshold=0.5, bins=10)
    assert found["f1"] == pytest.approx(sk.f1_score(truth, probabilities >= 0.5, average="macro"))
    assert found["auc"] == pytest.approx(sk.roc_auc_score(truth, probabilities))
    assert "kappa" not in found


def test_calibration_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.65, 0.65, 0.65, 0.65])
    correct = np.array([True, True, True, False, False, False])
    # Bin (0.9, 1]: 2 of 6 at a gap of 0.05; bin (0.6, 0.7]: 4 of 6 at a gap of 0.4.
    assert metrics.calibration_error(confidence, correct, 10) == pytest.approx((2 * 0.05 + 4 * 0.4) / 6)


def _report(pairs: list[Pair], **options: object):
    card = Registry.discover().card(Kind.EVALUATOR, "classification")
    return ClassificationEvaluator(card).score(pairs, options_of(card, options))


def _pair(name: str, probabilities: list[float], label: int, classes: str = "abc") -> Pair:
    truth = np.eye(len(classes), dtype=np.float32)[label]
    return Pair(
        name=name,
        prediction=Classification(classes=tuple(classes), probabilities=np.array(probabilities, np.float32)),
        reference=Classification(classes=tuple(classes), probabilities=truth),
    )


def test_an_absent_class_is_left_out_and_told() -> None:
    generator = np.random.default_rng(0)
    pairs = []
    for i in range(30):
        p = generator.dirichlet([1, 1, 1])
        pairs.append(_pair(f"c{i}", p.tolist(), i % 2))
    report = _report(pairs, rounds=50)
    assert report.summary["auc"].value == pytest.approx(
        np.mean([report.summary["a/auc"].value, report.summary["b/auc"].value])
    )
    assert report.summary["c/auc"].value is None
    assert report.summary["auc"].low < report.summary["auc"].value < report.summary["auc"].high
    assert report.warnings == ["no case is of c: left out of the macro values that need one"]
    json.dumps(report.as_json(), allow_nan=False)


def test_undefined_is_said_so() -> None:
    report = _report([_pair("x", [1, 0, 0], 0), _pair("y", [0.9, 0.05, 0.05], 0)])
    assert report.summary["auc"].value is None
    assert "both cases with it and cases without" in report.summary["auc"].undefined
    assert report.summary["accuracy"].value == 1


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([0.5, float("nan"), 0.5], "between 0 and 1"),
        ([1.5, 0, 0], "between 0 and 1"),
        ([-0.1, 1, 0], "between 0 and 1"),
    ],
)
def test_probabilities_that_are_none(probabilities: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _report([_pair("x", probabilities, 0)])
    with pytest.raises(InputError, match="no case"):
        _report([])


def test_sums_that_are_not_one_are_told() -> None:
    assert (
        "of 1 cases do not sum to 1" in _report([_pair("x", [0.9, 0.9, 0], 0), _pair("y", [1, 0, 0], 1)]).warnings[-1]
    )


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = tmp_path / "cases.csv", tmp_path / "labels.csv"
    predictions.write_text(
        "case,status,headline,cause,p(no),p(yes)\na,done,,,0.2,0.8\nb,done,,,0.6,0.4\nc,failed,,x,,\n"
    )
    references.write_text("image,label\na,yes\nb,no\n")
    assert main(["score", "classification", str(predictions), str(references), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["accuracy"]["value"] == 1
    predictions.write_text("name,no,yes\na,0.2,0.8\nb,0.6,0.4\n")
    references.write_text("name,no,yes\na,0,1\nb,1,1\n")
    assert main(["score", "classification", str(predictions), str(references), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["accuracy"]["value"] == 0.75


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("name,a,b\nx,1,0\n", "name,label\nx,a\ny,b\n", "1 cases have no prediction, first 'y'"),
        ("name,a,b\nx,1,0\ny,1,0\n", "name,label\nx,a\n", "1 cases have no reference, first 'y'"),
        ("name,a,b\nx,1,0\nx,1,0\n", "name,label\nx,a\n", "line 3: the case 'x' is there twice"),
        ("name,a,b\nx,1,0\n", "name,label\nx,c\n", "is of class 'c', the predictions have a, b"),
        ("name,a,b\nx,1,high\n", "name,label\nx,a\n", "has 'high', a number was expected"),
        ("a,b\n1,0\n", "name,label\nx,a\n", "no column that names the case"),
        ("name,a,b\nx,1,0\n", "name,a,b\nx,1,2\n", "neither 0 nor 1"),
    ],
)
def test_tables_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], predictions: str, references: str, message: str
) -> None:
    (tmp_path / "p.csv").write_text(predictions)
    (tmp_path / "r.csv").write_text(references)
    assert main(["score", "classification", str(tmp_path / "p.csv"), str(tmp_path / "r.csv")]) == 1
    assert message in capsys.readouterr().err


def test_the_picture_and_the_page_of_a_report(tmp_path: Path) -> None:
    probabilities, wanted = _sample()
    names = ["a", "b", "c", "d"]
    rows = [f"{n},{','.join(f'{p:.6f}' for p in row)}" for n, row in enumerate(probabilities)]
    (tmp_path / "p.csv").write_text("name,a,b,c,d\n" + "\n".join(rows) + "\n")
    (tmp_path / "r.csv").write_text("name,label\n" + "".join(f"{n},{names[w]}\n" for n, w in enumerate(wanted)))
    files = [str(tmp_path / "p.csv"), str(tmp_path / "r.csv")]
    assert main(["score", "classification", *files, "--rounds", "10", "-o", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert set(report["environment"]["files"]) == set(files)
    assert 'src="data:image/png' in (tmp_path / "r.html").read_text("utf-8")
    with Image.open(tmp_path / "r.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 60
    truth = np.eye(4, dtype=bool)[wanted]
    for c in range(4):
        points = np.array(pictures.roc(probabilities[:, c], truth[:, c]))
        under = float((np.diff(points[:, 0]) * (points[1:, 1] + points[:-1, 1]) / 2).sum())
        assert under == pytest.approx(metrics.auc(probabilities[:, c], truth[:, c]))


def test_one_case_that_does_not_fit_is_left_out_where_somebody_is_told() -> None:
    told: list[str] = []
    bad = attrs.evolve(_pair("bad", [0.5, float("nan"), 0.5], 0), refused=lambda error: told.append(error.message))
    report = _report([_pair("x", [1, 0, 0], 0), bad, _pair("y", [0, 1, 0], 1)])
    assert len(report.cases) == 2 and "bad: probabilities lie between 0 and 1" in told[0]


def test_options_without_sense(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("name,a,b\nx,1,0\n")
    (tmp_path / "r.csv").write_text("name,label\nx,a\n")
    for more in (["--bins", "0"], ["--rounds", "-5"]):
        assert main(["score", "classification", str(tmp_path / "p.csv"), str(tmp_path / "r.csv"), *more]) == 2
