"""The dataset of questions, and answers to it scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import omlab
from omlab.cases import Text
from omlab.cli.main import main
from omlab.datasets import gather, verify
from omlab.errors import InputError, UsageError
from omlab.evaluator import Pair
from omlab.loading import options_of
from omlab.plugins import Registry
from omlab.results import Generation
from omlab.vocabulary import Kind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sets: dict[str, list[dict[str, Any]]] = {
        "Med-Exam": [
            {"question": "选择 (A) 一 (B) 二", "answer": ["A"], "other": {"id": 1}},
            {"question": "选择 (A) 三 (B) 四", "answer": ["B"], "other": {"id": 2}},
            {"question": "没有答案", "answer": None},
        ],
        "MedHG": [{"question": "挂什么科？", "answer": ["内科"]}],
        "CHIP-CDN": [{"question": "归一", "answer": [{"entity": "高血压", "type": "normalization"}]}],
    }
    for name, rows in sets.items():
        (tmp_path / "m" / name).mkdir(parents=True)
        end = "_test" if name == "MedHG" else ""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "m" / name / f"{name}{end}.jsonl").write_text(text, "utf-8")
    return tmp_path / "m"


def test_questions_are_asked_as_they_are(root: Path) -> None:
    bound = omlab.load_dataset(f"medbench:{root}")
    items = list(bound.items())
    assert [item.name for item in items] == ["CHIP-CDN 1", "Med-Exam 1", "Med-Exam 2", "Med-Exam 3", "MedHG 1"]
    case = items[1].case()
    assert isinstance(case, Text) and [(m.role, m.content) for m in case.messages] == [("user", "选择 (A) 一 (B) 二")]
    assert items[3].truth() is None
    found = verify(bound)
    assert found.whole and [(p.where, p.what) for p in found.problems] == [
        ("Med-Exam", "1 of 3 questions have no answer: they can be asked and not scored here")
    ]
    assert gather(bound)[0].tables["Sets"]["MedHG"] == "1 questions, MedBenchEvaluator_Cloze"
    assert [i.name for i in omlab.load_dataset(f"medbench,set=MedHG:{root}").items()] == ["MedHG 1"]
    with pytest.raises(UsageError, match="has no set 'X'"):
        list(omlab.load_dataset(f"medbench,set=X:{root}").items())
    with pytest.raises(InputError, match="has no DrugCA/DrugCA.jsonl"):
        list(omlab.load_dataset(f"medbench,set=DrugCA:{root}").items())
    (root / "MedHG" / "MedHG_test.jsonl").write_text('{"answer": ["x"]}\n')
    with pytest.raises(InputError, match="line 1: has no 'question'"):
        list(bound.items())


def test_answers_of_a_model_are_scored_set_by_set(root: Path, tmp_path: Path) -> None:
    registry = Registry.discover()
    evaluator = registry.load(Kind.EVALUATOR, "medbench")
    (tmp_path / "names.json").write_text('["高血压", "糖尿病"]', "utf-8")
    said = {"Med-Exam 1": "选A", "Med-Exam 2": "选A", "MedHG 1": "应该去内科", "CHIP-CDN 1": "高血压，糖尿病"}
    items = [item for item in omlab.load_dataset(f"medbench:{root}").items() if item.truth() is not None]
    pairs = [Pair(name=i.name, prediction=Generation(text=said[i.name]), reference=i.truth()) for i in items]
    report = evaluator.score(pairs, options_of(evaluator.card, {"entities": str(tmp_path / "names.json")}))
    assert {name: value.value for name, value in report.summary.items()} == pytest.approx(
        {"CHIP-CDN/F1": 2 / 3, "Med-Exam/Accuracy": 50.0, "MedHG/Accuracy": 100.0}
    )
    told: list[str] = []
    odd = Pair(
        name="odd", prediction=pairs[0].prediction, reference=Generation(text="内科"),
        refused=lambda error: told.append(error.message),
    )  # fmt: skip
    assert evaluator.score([odd, *pairs[1:]], options_of(evaluator.card, {})).summary.keys() == {
        "Med-Exam/Accuracy", "MedHG/Accuracy",
    }  # fmt: skip
    assert told == ["odd: its reference is none of MedBench"]
    with pytest.raises(InputError, match="no answer to score"):
        evaluator.score([], options_of(evaluator.card, {}))


def test_how_to_obtain_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "fetch", "medbench"]) == 1
    assert "the field answer" in capsys.readouterr().out
