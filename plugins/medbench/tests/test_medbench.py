"""Scores against those of OpenCompass's own code, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omlab.cli.main import main
from omlab_medbench import choices, extraction, scores
from omlab_medbench.sets import EVALUATORS, sound_choice

GOLDEN = Path(__file__).parent.parent / "goldens" / "medbench.json"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text("utf-8"))


def test_scores_equal_upstream(golden: dict) -> None:
    for case in golden["cases"]:
        found = EVALUATORS[case["evaluator"]](case["predictions"], case["references"], case.get("entity_list", ()))
        if "raises" in case:
            assert found.raises == case["raises"]
        else:
            assert dict(found.score) == pytest.approx(case["score"], abs=1e-12), case["evaluator"]
        if "item_correct" in case:
            assert list(found.correct) == case["item_correct"]
        for mine, theirs in zip(found.parsed or (), case.get("parsed", ()), strict=False):
            if isinstance(theirs, list):
                assert sorted(map(str, mine)) == sorted(map(str, theirs))
            else:
                assert mine == theirs


def test_the_command_prints_the_list(golden: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "medbench", str(GOLDEN), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(golden["cases"])
    for mine, case in zip(found, golden["cases"], strict=True):
        assert mine == pytest.approx(case.get("score", {"raises": case.get("raises")}), abs=1e-12)
    assert main(["score", "medbench", str(GOLDEN), "-o", str(tmp_path / "r.json")]) == 0
    assert "AssertionError" in capsys.readouterr().out
    assert (tmp_path / "r.png").is_file()


def test_what_is_read_from_texts(golden: dict) -> None:
    for case in golden["letters"]:
        assert choices.letters(case["text"]) == case["letters"], case
    for case in golden["smdoc_fields"]:
        assert extraction.examination(case["text"]) == case["parsed"], case
    for case in golden["mrg_fields"]:
        assert extraction.record(case["text"]) == case["parsed"], case
    for case in golden["equivalence"]:
        assert choices.equivalent(case["a"], case["b"]) is case["equal"], case


def test_the_sound_rule_reads_options_as_a_set() -> None:
    texts = ["ABC", "B、A", "CT和MRI提示A", "选择 C。", "无"]
    found = sound_choice(texts, [["A", "B", "C"], ["A", "B"], ["A"], ["C"], ["A"]])
    assert found.correct == (True, True, True, True, False)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("\\dfrac12", "\\frac{1}{2}", True), (".5", "0.5", True), ("3/4", "\\frac{3}{4}", True),
        ("\\sqrt3", "\\sqrt{3}", True), ("90^{\\circ}", "90", True), ("5 \\text{ mg}", "5", True), ("2", "3", False),
        (None, "2", False),
    ],
)  # fmt: skip
def test_ways_of_writing_a_number(a: str | None, b: str, equal: bool) -> None:
    assert choices.equivalent(a, b) is equal


def test_the_longest_common_subsequence_by_its_definition() -> None:
    import random

    generator = random.Random(0)
    for _ in range(50):
        a, b = ([generator.choice("abcd") for _ in range(generator.randint(0, 80))] for _ in range(2))
        row = [0] * (len(b) + 1)
        for x in a:
            last = row[:]
            for j, y in enumerate(b):
                row[j + 1] = last[j] + 1 if x == y else max(last[j + 1], row[j])
        assert scores.longest_common(a, b) == row[-1]


def test_words() -> None:
    assert scores.tokens("Café 20mg，注意\u200b!") == ["cafe", "20mg", "，", "注", "意", "!"]
    assert scores.rouge_l([""], ["x"]) is None
    assert scores.rouge_l(["\u200b"], ["无。"]) == pytest.approx(1, abs=1e-7)


def test_answers_to_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prediction": "选A", "answer": ["A"]}\n{"prediction": null, "answer": ["B"]}\n', "utf-8")
    assert main(["score", "medbench", str(path), "--set", "Med-Exam", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"Accuracy": 50.0}]
    names = tmp_path / "names.json"
    names.write_text('["高血压"]', "utf-8")
    path.write_text('{"prediction": "高血压，x", "answer": [{"entity": "高血压", "type": "normalization"}]}\n', "utf-8")
    assert main(["score", "medbench", str(path), "--set", "CHIP-CDN", "--entities", str(names), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"F1": 1.0}]


@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        ("{", [], 1, "is no JSON"),
        ("{}", [], 1, "holds no 'cases'"),
        ('[{"evaluator": "MedBenchEvaluator"}]', [], 1, "case 1: has no 'predictions'"),
        ("[1]", [], 1, "case 1: expected an object, found int"),
        ('[{"evaluator": ["X"], "predictions": [], "references": []}]', [], 1, "is no evaluator"),
        (
            '[{"evaluator": "MedBenchEvaluator", "predictions": "A", "references": ["A"]}]',
            [],
            1,
            "'predictions' is a list",
        ),
        ('[{"evaluator": "MedBenchEvaluator", "predictions": ["A"], "references": 5}]', [], 1, "is a list, found int"),
        ('[{"evaluator": "X", "predictions": [], "references": []}]', [], 1, "'X' is no evaluator"),
        (
            '[{"evaluator": "MedBenchEvaluator_NLG", "predictions": ["a"], "references": []}]',
            [],
            1,
            "1 predictions and 0",
        ),
        (
            '[{"evaluator": "MedBenchEvaluator_CMeEE", "predictions": ["a"], "references": [[3]]}]',
            [],
            1,
            "another form",
        ),
        ('{"prediction": "A", "answer": null}', ["--set", "DrugCA"], 1, "public files hold questions alone"),
        ('{"answer": ["A"]}', ["--set", "DrugCA"], 1, "line 1: expected 'prediction' and 'answer'"),
        ("", ["--set", "Nothing"], 2, "has no set 'Nothing'"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, arguments: list[str], code: int, message: str
) -> None:
    path = tmp_path / "f.json"
    path.write_text(content, "utf-8")
    assert main(["score", "medbench", str(path), *arguments]) == code
    assert message in capsys.readouterr().err
