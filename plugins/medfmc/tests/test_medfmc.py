"""Metrics against upstream's own functions, and files that do not fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from omlab.cli.main import main
from omlab_medfmc import fewshot, metrics
from omlab_medfmc.sets import SETS, read_labels, read_submission

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "medfmc"


@pytest.fixture(scope="module")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("needs the folder of upstream's lists beside the project")
    return DATA


@pytest.mark.parametrize(("name", "which"), [("endo_1-shot", "endo"), ("colon_10-shot", "colon")])
def test_sample_submissions_score_as_recorded(
    data: Path, name: str, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = json.loads((data / "expected_metrics.json").read_text("utf-8"))["submissions"][name]
    labels, submission = data / f"{which}_val.txt.gz", data / f"{name}_submission.csv.gz"
    arguments = ["--dataset", which, "--labels", str(labels), "--submission", str(submission), "--json"]
    assert main(["score", "medfmc", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["AUC"] == pytest.approx(wanted.get("AUC_multilabel", wanted.get("AUC_multiclass")), abs=1e-9)
    for key in (
        "images",
        "mAP",
        "accuracy",
        "class_ap",
        "class_auc",
        "positives",
        "CP",
        "CR",
        "CF1",
        "OP",
        "OR",
        "OF1",
    ):
        if key in wanted:
            # Upstream's accuracy is a float32, and its unstable sort may swap equal scores.
            tolerance = {"accuracy": 1e-5, "mAP": 1e-4, "class_ap": 1e-3}.get(key, 1e-9)
            assert found[key] == pytest.approx(wanted[key], abs=tolerance), key


def test_small_cases_equal_upstream(data: Path) -> None:
    for case in json.loads((data / "metric_cases.json").read_text("utf-8")):
        scores, labels = np.array(case["scores"]), np.array(case["labels"])
        found = metrics.multi_label(scores, labels) if case["kind"] == "endo" else metrics.single_label(scores, labels)
        ties = "ties" in case.get("note", "")
        assert metrics.repeated(found.class_auc) == pytest.approx(case["class_auc"], abs=1e-9)
        assert found.auc("upstream") == pytest.approx(case.get("AUC_multilabel", case.get("AUC_multiclass")), abs=1e-9)
        if found.class_ap is not None:
            kept = [c for c in range(4) if not (ties and c == 2)]
            assert [found.class_ap[c] for c in kept] == pytest.approx([case["class_ap"][c] for c in kept], abs=1e-6)
            assert found.pooled == pytest.approx({k: case[k] for k in found.pooled}, abs=1e-5)
            if not ties:
                assert found.mean_ap("upstream") == pytest.approx(case["mAP"], abs=1e-6)
        else:
            assert found.accuracy == pytest.approx(case["accuracy"], abs=1e-5)
    case = json.loads((data / "difficult_case.json").read_text("utf-8"))
    found = metrics.average_precision(np.array(case["scores"]), np.array(case["labels"]))
    assert found == pytest.approx(100 * case["average_precision"])


def test_a_class_with_one_label_value_is_told_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "l.txt").write_text("".join(f"a b {i}.png {i % 2} {i // 3 % 2} {i // 2 % 2} 0\n" for i in range(12)))
    rows = generator.random((12, 4)).round(3).tolist()
    text = "".join(f"a b {i}.png,{','.join(map(str, row))}\n" for i, row in enumerate(rows))
    (tmp_path / "s.csv").write_text(text)
    arguments = ["--dataset", "endo", "--labels", str(tmp_path / "l.txt"), "--submission", str(tmp_path / "s.csv")]
    assert main(["score", "medfmc", *arguments, "--json"]) == 0
    upstream = json.loads(capsys.readouterr().out)
    assert upstream["class_auc"][3] == upstream["class_auc"][2]
    assert upstream["mAP"] == pytest.approx(sum(upstream["class_ap"][:3]) / 4)
    assert main(["score", "medfmc", *arguments, "--absent", "left-out", "--json"]) == 0
    left_out = json.loads(capsys.readouterr().out)
    assert left_out["undefined"] == ["tumor"]
    assert left_out["class_auc"][3] == "nan"
    assert left_out["AUC"] == pytest.approx(np.mean(left_out["class_auc"][:3]))
    assert left_out["mAP"] == pytest.approx(np.mean(left_out["class_ap"][:3]))
    assert main(["score", "medfmc", *arguments]) == 0
    assert "tumor, which takes the AUC of the class before it" in capsys.readouterr().err


def test_a_whole_challenge(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for experiment in ("exp1", "exp2"):
        folder = tmp_path / "result" / experiment
        folder.mkdir(parents=True)
        for name in ("endo_1-shot", "colon_10-shot"):
            packed = (data / f"{name}_submission.csv.gz").read_bytes()
            (folder / f"{name}_submission.csv").write_bytes(gzip.decompress(packed))
    arguments = ["--labels", str(data), "--submission", str(tmp_path / "result"), "--json"]
    assert main(["score", "medfmc", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["submission"] for row in found["submissions"]] == [
        "exp1/colon 10-shot", "exp1/endo 1-shot", "exp2/colon 10-shot", "exp2/endo 1-shot",
    ]  # fmt: skip
    assert found["challenge"] == pytest.approx((24.7991 + 71.3860 + 91.6188 + 97.0589) / 4, abs=1e-3)


def test_raw_scores_that_are_large_do_not_overflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "l.txt").write_text("a.png 1\nb.png 0\nc.png 1\n")
    (tmp_path / "s.csv").write_text("a.png,-900,900\nb.png,800,-800\nc.png,10,20\n")
    arguments = ["--dataset", "Colon", "--labels", str(tmp_path / "l.txt"), "--submission", str(tmp_path / "s.csv")]
    assert main(["score", "medfmc", *arguments, "--json", "-o", str(tmp_path / "r.json")]) == 0
    assert json.loads(capsys.readouterr().out)["AUC"] == 100.0
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert len(report["environment"]["files"]) == 2 and (tmp_path / "r.png").is_file()


def test_blanks_in_place_of_commas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "l.txt").write_text("a b.png 1\nc d.png 0\n")
    (tmp_path / "s.csv").write_text("a b.png 0.2 0.8\nc d.png 0.9 0.1\n")
    arguments = ["--dataset", "colon", "--labels", str(tmp_path / "l.txt"), "--submission", str(tmp_path / "s.csv")]
    assert main(["score", "medfmc", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 100.0


def test_a_submission_written_is_the_submission_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores of a run as a table, in another order and with endings left out, give upstream's sample file again."""
    which = SETS["endo"]
    given = read_submission(data / "endo_1-shot_submission.csv.gz", which)
    rows = [f"{name.removesuffix('.png')},done,,,{','.join(map(str, v.tolist()))}" for name, v in given.items()]
    head = "case,status,headline,cause," + ",".join(f"p({name})" for name in which.classes)
    (tmp_path / "cases.csv").write_text("\n".join([head, *reversed(rows)]) + "\n")
    (tmp_path / "test_WithoutLabel.txt").write_text("\n".join(given) + "\n")
    out = tmp_path / "endo_1-shot_submission.csv"
    call = ["medfmc", "submit", str(tmp_path / "cases.csv"), "--dataset", "endo", "-o", str(out), "--images"]
    assert main([*call, str(tmp_path / "test_WithoutLabel.txt")]) == 0
    written = read_submission(out, which)
    assert list(written) == list(given)
    assert all(np.array_equal(written[name], given[name].round(8)) for name in given)
    arguments = ["--dataset", "endo", "--labels", str(data / "endo_val.txt.gz"), "--submission", str(out), "--json"]
    capsys.readouterr()
    assert main(["score", "medfmc", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["AUC"] == pytest.approx(71.38597732085242, abs=1e-9)
    for table, message in (
        (head.replace("p(polyp)", "p(x)") + "\n", "has no column 'polyp'"),
        (f"{head}\na,failed,,too dark,,,,\n", "the case 'a' failed: too dark"),
        (f"{head}\na,done,,,1,2,3,nan\n", "line 2: a score of a is no finite number"),
        (f"{head}\na,done,,,1,2,3,4\na.png,done,,,1,2,3,4\n", "line 3: a is there twice"),
        (f"{head}\na,done,,,1,2,3,4\n", "2055 of 2055 images have no scores, first"),
        ("x,y\n1,2\n", "no column that names the image"),
    ):
        (tmp_path / "cases.csv").write_text(table)
        assert main([*call, str(tmp_path / "test_WithoutLabel.txt")]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("which", ["chest", "colon", "endo", "retino", "neojaundice"])
def test_lists_that_are_drawn_are_read_again(data: Path, tmp_path: Path, which: str) -> None:
    pools = {"retino": "Retino_fewshot-pool", "neojaundice": "NeoJaundice_fewshot-pool"}
    labels = data / f"{pools.get(which, f'{which}_trainval')}.txt.gz"
    call = [
        "medfmc",
        "draw",
        str(labels),
        "--dataset",
        which,
        "--shots",
        "5",
        "-o",
        str(tmp_path),
        "--experiments",
        "2",
    ]
    assert main(call) == 0
    known = read_labels(labels, SETS[which])
    texts = [(tmp_path / f"{which}_5-shot_train_exp{n}.txt").read_text() for n in (1, 2)]
    assert texts[0] != texts[1]
    drawn = fewshot.draw(which, known, 5, seed=1)
    lines = texts[1].splitlines()
    assert [line.rsplit(" ", max(1, lines[0].count(" ") - drawn[0].count(" ")))[0] for line in lines] == drawn
    (tmp_path / "once.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    again = read_labels(tmp_path / "once.txt", SETS[which])
    assert all(np.array_equal(again[name], known[name]) for name in again) and set(again) == set(drawn)


LABELS = "a.png 1\nb b.png 0\n"


@pytest.mark.parametrize(
    ("labels", "submission", "message"),
    [
        (LABELS, "a.png,0.1,0.9\n", "1 images have a label and no score, first b b.png"),
        (LABELS, "a.png,0.1,0.9\nb b.png,0.5,0.5\nc.png,1,0\n", "1 images have a score and no label, first c.png"),
        (LABELS, "a.png,0.1,0.9\na.png,0.5,0.5\n", "line 2: a.png is there twice"),
        (LABELS, "a.png,0.1\n", "line 1: has 1 scores, colon has 2 classes"),
        (LABELS, "a.png,0.1,nan\n", "no finite number"),
        ("a.png 2\n", "a.png,0.1,0.9\n", "line 1: expected a name and 1 labels of colon"),
        ("a.png 1\na.png 0\n", "a.png,0.1,0.9\n", "line 2: a.png is there twice"),
        ("", "a.png,0.1,0.9\n", "holds no label"),
        (LABELS, "", "holds no score"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str, submission: str, message: str
) -> None:
    (tmp_path / "l.txt").write_text(labels)
    (tmp_path / "s.csv").write_text(submission)
    arguments = ["--dataset", "colon", "--labels", str(tmp_path / "l.txt"), "--submission", str(tmp_path / "s.csv")]
    assert main(["score", "medfmc", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_wrong_calls(tmp_path: Path) -> None:
    assert main(["score", "medfmc"]) == 2
    assert main(["score", "medfmc", "--labels", "l", "--submission", "s"]) == 2
    assert main(["score", "medfmc", "--labels", str(tmp_path), "--submission", str(tmp_path)]) == 1


@pytest.mark.parametrize("which", ["chest", "colon", "endo"])
def test_few_shot_lists_are_drawn_like_the_released_ones(data: Path, which: str) -> None:
    labels = read_labels(data / f"{which}_trainval.txt.gz", SETS[which])
    images = list(labels)
    with gzip.open(data / "few_shot_splits.json.gz", "rt", encoding="utf-8") as file:
        released = json.load(file)[which]
    classes = len(SETS[which].classes)
    for shots in fewshot.SHOTS:
        mine = fewshot.draw(which, labels, shots, seed=0)
        assert mine == fewshot.draw(which, labels, shots, seed=0)
        assert mine != fewshot.draw(which, labels, shots, seed=1)
        theirs = [images[line] for line in released[str(shots)]["1"]["train"]]
        if which == "chest":
            assert len(mine) == len(theirs)  # a class with fewer images than shots gives all of them
        else:
            # As many studies a class; how many images those have is the draw's luck.
            counts = []
            for drawn in (mine, theirs):
                by_class = [
                    {fewshot.study_of(which, i) for i in drawn if (labels[i][c] if classes > 2 else labels[i][0] == c)}
                    for c in range(classes)
                ]
                counts.append([len(studies) >= shots for studies in by_class])
            assert counts[0] == counts[1]
        if which != "colon":
            validation = [images[line] for line in released[str(shots)]["1"]["val"]]
            assert fewshot.overlap(theirs, validation)  # as the fact sheet warns
