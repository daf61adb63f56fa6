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
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert main(["compare", paths[0], str(tmp_path / "other.json")]) == 1
    assert "is no report" in capsys.readouterr().err
