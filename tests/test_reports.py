"""Reports as pages, and reports side by side."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omlab.cli.main import main
from omlab.comparing import by_case, compare
from omlab.errors import UsageError
from omlab.page import html
from omlab.report import Report, Value


class _Page(HTMLParser):
    """What tags and texts a page has; raises on a tag that is closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures += 1
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_says_everything_and_lets_no_markup_in() -> None:
    report = Report(
        evaluator="dice", title="Dice & more",
        summary={
            "liver/dice": Value(value=0.9, low=0.85, high=0.93, n=12),
            "<b>/dice": Value(value=None, n=0, undefined="no case has it"),
            "liver/hd95_mm": Value(value=3.2, unit="mm", n=12),
        },
        cases=[{"case": "<script>alert(1)</script>", "dice": 0.912345, "ok": True, "labels": [1, 2], "none": None}],
        options={"tolerance_mm": 1.0}, environment={"model": "m", "dataset": "d"}, warnings=["a & b"],
        illustration=lambda title: Image.new("RGB", (8, 8)),
    )  # fmt: skip
    page = _Page(html(report))
    text = " ".join(page.texts)
    assert page.open == []
    assert page.pictures == 1
    for shown in (
        "Dice & more", "dice · m · d", "a & b", "0.85 to 0.93", "undefined: no case has it", "3.2 mm", "0.9123",
        "<script>alert(1)</script>", "[1, 2]", '"tolerance_mm": 1.0',
    ):  # fmt: skip
        assert shown in text
    assert "script" not in html(report).replace("&lt;script", "").replace("/script&gt;", "")


def test_figures_that_read_better_together_are_a_table() -> None:
    report = Report(
        evaluator="elo", summary={"m/a": Value(value=1.0)}, table=[["model", "<a>"], ["m & n", "1000 (1)"]],
    )  # fmt: skip
    page = _Page(html(report))
    assert page.open == [] and {"model", "<a>", "m & n", "1000 (1)", "m/a"} <= set(page.texts)
    assert "table" not in report.as_json()


def _report(shift: float, count: int = 30, seed: int = 0) -> dict:
    hard = np.random.default_rng(seed).uniform(0.3, 0.9, count)
    noise = np.random.default_rng(seed + 1).normal(0, 0.01, count) if shift else np.zeros(count)
    values = hard + shift + noise
    rows = [{"case": f"c{i}", "structure": "liver", "dice": float(v)} for i, v in enumerate(values)]
    report = Report(
        evaluator="segmentation", summary={"liver/dice": Value(value=float(values.mean()), n=count)}, cases=rows
    )
    return report.as_json()


def test_a_small_gain_on_every_case_is_told_apart() -> None:
    (row,) = compare([_report(0), _report(0.02)], rounds=2000)
    assert row.difference == pytest.approx(0.02, abs=0.005)
    assert 0 < row.low < row.difference < row.high < 0.03
    assert row.verdict == "differs"
    assert row.cases == 30
    (same,) = compare([_report(0), _report(0, seed=7)], rounds=2000)  # other scans, as hard as these
    assert same.verdict == "not told apart"
    assert same.high - same.low > 5 * (row.high - row.low)


def test_only_cases_that_both_have_count() -> None:
    first, last = _report(0), _report(0.02)
    last["cases"] = [row for row in last["cases"] if int(row["case"][1:]) % 2]
    last["cases"][0]["dice"] = "nan"
    (row,) = compare([first, last], rounds=500)
    assert row.cases == 14
    last["cases"] = last["cases"][:3]
    (row,) = compare([first, last], rounds=500)
    assert (row.low, row.verdict, row.cases) == (None, "", 0)
    assert by_case(first, "spleen/dice") == {}


def test_reports_that_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="two reports"):
        compare([_report(0)])
    with pytest.raises(UsageError, match="different evaluators: elo, segmentation"):
        compare([_report(0), _report(0) | {"evaluator": "elo"}])


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal cuts the last column
    paths = []
    for name, shift in (("a", 0.0), ("b", 0.0), ("c", 0.02)):
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(_report(shift)))
    assert main(["compare", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["metric", "a", "b", "c"]
    assert "differs" in lines[1]
    assert main(["compare", *paths, "--json", "--only", "dice"]) == 0
    (metric,) = json.loads(capsys.readouterr().out)["metrics"]
    assert len(metric["values"]) == 3
    assert main(["compare", paths[0], str(tmp_path / "none.json")]) == 1
    for text in (
        '{"a": 1}',
        "[]",
        '{"summary": {"a": 1}, "evaluator": "x"}',
        '{"summary": {}, "evaluator": "x", "cases": 5}',
    ):
        (tmp_path / "other.json").write_text(text)
        assert main(["compare", paths[0], str(tmp_path / "other.json")]) == 1
        assert "is no report" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"summary": {}, "evaluator": "classification"}')
    assert main(["compare", str(tmp_path / "other.json"), str(tmp_path / "other.json")]) == 0


def test_figures_that_are_no_mean_over_cases_are_drawn_by_their_evaluator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AUC of two classifiers of the same images: the better one is told apart, and one against itself is not."""
    generator = np.random.default_rng(0)
    wanted = np.arange(200) % 2
    (tmp_path / "r.csv").write_text("name,label\n" + "".join(f"{n},{['no', 'yes'][w]}\n" for n, w in enumerate(wanted)))
    for name, skill in (("weak", 0.5), ("strong", 2.0)):
        share = 1 / (1 + np.exp(-(skill * (2 * wanted - 1) + generator.normal(0, 1, 200))))
        rows = "".join(f"{n},{1 - p},{p}\n" for n, p in enumerate(share))
        (tmp_path / f"{name}.csv").write_text("name,no,yes\n" + rows)
        files = [str(tmp_path / f"{name}.csv"), str(tmp_path / "r.csv")]
        assert main(["score", "classification", *files, "--rounds", "0", "-o", str(tmp_path / f"{name}.json")]) == 0
    capsys.readouterr()
    found = []
    for pair in (("weak", "strong"), ("weak", "weak")):
        paths = [str(tmp_path / f"{name}.json") for name in pair]
        assert main(["compare", *paths, "--rounds", "200", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["metrics"]
        found.append({row["metric"]: row for row in rows})
    better = found[0]["auc"]
    assert better["low"] < better["difference"] < better["high"] and better["verdict"] == "differs"
    assert better["difference"] == pytest.approx(better["values"][1] - better["values"][0])
    assert better["cases"] == 200 and found[0]["kappa"]["verdict"] == "differs"
    assert found[1]["auc"]["low"] == found[1]["auc"]["high"] == 0 and found[1]["auc"]["verdict"] == "not told apart"
    report = json.loads((tmp_path / "weak.json").read_text("utf-8"))
    report["cases"][0]["reference"] = ["yes"]
    (tmp_path / "other.json").write_text(json.dumps(report))
    assert main(["compare", str(tmp_path / "weak.json"), str(tmp_path / "other.json")]) == 1
    assert "0: the reports say that it is of different classes" in capsys.readouterr().err


def test_assays_and_answers_are_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    for side in ("f", "s1", "s2"):
        (tmp_path / side).mkdir()
    for number in range(8):
        measured = generator.normal(size=30)
        for side, noise, column in (("f", 0.0, "score"), ("s1", 1.5, "predict_score"), ("s2", 0.2, "predict_score")):
            values = measured + noise * generator.normal(size=30)
            rows = "".join(f"A{n}C,{v}\n" for n, v in enumerate(values, 1))
            (tmp_path / side / f"a{number}.csv").write_text(f"mutant,{column}\n{rows}")
    for side in ("s1", "s2"):
        files = [str(tmp_path / side), str(tmp_path / "f")]
        assert main(["score", "fitness", *files, "--rounds", "0", "-o", str(tmp_path / f"{side}.json")]) == 0
    for name, right in (("b1", 5), ("b2", 38)):
        case = {
            "evaluator": "MedBenchEvaluator", "predictions": ["A"] * right + ["B"] * (40 - right),
            "references": [["A"]] * 40,
        }  # fmt: skip
        (tmp_path / f"{name}.in.json").write_text(json.dumps([case]))
        assert main(["score", "medbench", str(tmp_path / f"{name}.in.json"), "-o", str(tmp_path / f"{name}.json")]) == 0
    capsys.readouterr()
    for pair, metric, cases in ((("s1", "s2"), "average/spearman", 8), (("b1", "b2"), "Accuracy", 40)):
        paths = [str(tmp_path / f"{name}.json") for name in pair]
        assert main(["compare", *paths, "--rounds", "500", "--json", "--only", metric]) == 0
        (row,) = json.loads(capsys.readouterr().out)["metrics"]
        assert (
            row["verdict"] == "differs" and row["cases"] == cases and 0 < row["low"] < row["difference"] < row["high"]
        )
