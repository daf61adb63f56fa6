"""``omlab score medbench FILE``: cases of predictions and references, or a file of answers to one set."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omlab import charts
from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair, Resampled
from omlab.report import Report, Value
from omlab.results import Generation
from omlab_medbench.sets import EVALUATORS, Scored, evaluator_of, known_sets, sound_choice

_CHOICE = "MedBenchEvaluator"


class MedBench(Evaluator):
    """Answers to MedBench's sets."""

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Score every case of a JSON file (``cases``: ``evaluator``, ``predictions``, ``references``), or with ``set``
        the lines (``prediction``, ``answer``) of a file of JSON lines.

        Raises
        ------
        omlab.errors.InputError
            The file is of another form, a list has another length, or a reference is of another type than the set's.
        omlab.errors.UsageError
            There is not one file, or the set is unknown.
        """
        if len(files) != 1:
            raise UsageError(f"medbench takes one file, found {len(files)}", remedy="omlab score medbench FILE")
        path = files[0]
        return self._report(_answers(path, options["set"]) if options["set"] else _cases(path), path.name, options)

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """Answers of a model to the dataset ``medbench``, a score a set.

        Raises
        ------
        omlab.errors.InputError
            A reference is none of the dataset's, or there is no answer.
        """
        cases: dict[str, dict[str, Any]] = {}
        for pair in pairs:
            try:
                name, answer = _asked(pair)
            except InputError as error:
                pair.refuse(error)
                continue
            evaluator = evaluator_of(name)
            case = cases.setdefault(name, {"name": name, "evaluator": evaluator, "predictions": [], "references": []})
            case["predictions"].append(pair.prediction.text)  # type: ignore[attr-defined]
            case["references"].append(answer)
        if not cases:
            raise InputError("there is no answer to score")
        return self._report(list(cases.values()), "medbench", options)

    def _report(self, cases: Sequence[Mapping[str, Any]], source: str, options: Mapping[str, Any]) -> Report:
        known = _names(Path(options["entities"])) if options["entities"] else ()
        summary: dict[str, Value] = {}
        rows: list[dict[str, Any]] = []
        machine: list[dict[str, Any]] = []
        for number, case in enumerate(cases):
            name = str(case.get("name") or f"{number + 1} {case['evaluator'].removeprefix('MedBenchEvaluator_')}")
            found = _score(case, f"{source}, case {number + 1}", known, options["rule"])
            machine.append({"raises": found.raises} if found.raises else dict(found.score))
            count = len(case["predictions"])
            if found.raises:
                why = f"OpenCompass ends with {found.raises} on such answers"
                summary[f"{name}/score"] = Value(value=None, n=count, undefined=why)
            for key, value in found.score.items():
                why = "" if value is not None else "every prediction or reference is empty"
                unit = "%" if key == "Accuracy" else ""
                summary[f"{name}/{key}"] = Value(value=value, n=count, unit=unit, undefined=why)
            rows.append(
                {
                    "case": name, "evaluator": case["evaluator"], "answers": count, "score": machine[-1],
                    "correct": found.correct, "parsed": found.parsed,
                }
            )  # fmt: skip
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=rows, options=dict(options),
            environment={"plugin": self.card.plugin, "version": self.card.version},
            machine=machine, illustration=lambda title: _draw(title, summary),
        )  # fmt: skip

    def resampled(self, reports: Sequence[Mapping[str, Any]], *, rounds: int, seed: int) -> Mapping[str, Resampled]:
        """Accuracies over answers drawn with replacement, of sets to which all reports have as many answers."""
        tables = [_correct(report) for report in reports]
        found = {}
        for name, first in tables[0].items():
            if any(len(table.get(name, ())) != len(first) for table in tables):
                continue
            correct = np.array([table[name] for table in tables], np.float64) * 100
            chosen = np.random.default_rng(seed).integers(0, len(first), (rounds, len(first)))
            draws = np.array([row[chosen].mean(axis=1) for row in correct])
            found[f"{name}/Accuracy"] = Resampled(correct.mean(axis=1), draws, len(first))
        return found


def _asked(pair: Pair) -> tuple[str, Any]:
    """The set that a pair is of, and the answer that its reference tells."""
    if not isinstance(pair.prediction, Generation) or not isinstance(pair.reference, Generation):
        raise InputError(f"{pair.name}: prediction and reference must be texts")
    try:
        told = json.loads(pair.reference.text)
        name, answer = str(told["set"]), told["answer"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{pair.name}: its reference is none of MedBench", remedy="Use --on medbench:PATH") from None
    if evaluator_of(name) is None:
        raise InputError(f"{pair.name}: MedBench has no set '{name}'", remedy=f"It has {', '.join(known_sets())}")
    return name, answer


def _correct(report: Mapping[str, Any]) -> dict[str, list[bool]]:
    return {row["case"]: row["correct"] for row in report.get("cases", ()) if row.get("correct")}


def _draw(title: str, summary: Mapping[str, Value]) -> Any:
    """Every score in per cent."""
    rows = []
    for name, value in summary.items():
        share = math.nan if value.value is None else value.value * (1 if value.unit == "%" else 100)
        rows.append(charts.Figure(name, share))
    return charts.sheet(title, [charts.figures("score, in per cent", rows, low=0.0, high=100.0)])


def _score(case: Mapping[str, Any], place: str, known: Collection[str], rule: str) -> Scored:
    scorer = EVALUATORS[case["evaluator"]]
    if case["evaluator"] == _CHOICE and rule == "sound":
        scorer = sound_choice
    try:
        return scorer(case["predictions"], case["references"], case.get("entity_list") or known)
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{place}: a reference is of another form than {case['evaluator']} takes: {error}",
            remedy="Choices and parts are lists of texts, extractions lists of objects, the rest texts",
        ) from None


def _cases(path: Path) -> list[dict[str, Any]]:
    content = _json(path)
    cases = content.get("cases") if isinstance(content, Mapping) else content
    if not isinstance(cases, list) or not cases:
        raise InputError(f"{path.name}: holds no 'cases'", remedy="For answers to one set, name it with --set")
    for number, case in enumerate(cases, start=1):
        place = f"{path.name}, case {number}"
        if not isinstance(case, Mapping):
            raise InputError(f"{place}: expected an object, found {type(case).__name__}")
        lacking = next((k for k in ("evaluator", "predictions", "references") if k not in case), None)
        if lacking:
            raise InputError(f"{place}: has no '{lacking}'")
        if not isinstance(case["evaluator"], str) or case["evaluator"] not in EVALUATORS:
            raise InputError(
                f"{place}: '{case['evaluator']}' is no evaluator", remedy=f"They are {', '.join(EVALUATORS)}"
            )
        odd = next((key for key in ("predictions", "references") if not isinstance(case[key], list)), None)
        if odd:
            raise InputError(f"{place}: '{odd}' is a list, found {type(case[odd]).__name__}")
        if len(case["predictions"]) != len(case["references"]):
            raise InputError(
                f"{place}: has {len(case['predictions'])} predictions and {len(case['references'])} references"
            )
        if not all(isinstance(text, str) for text in case["predictions"]):
            raise InputError(f"{place}: predictions are texts")
    return cases


def _answers(path: Path, name: str) -> list[dict[str, Any]]:
    evaluator = evaluator_of(name)
    if evaluator is None:
        raise UsageError(f"MedBench has no set '{name}'", remedy=f"It has {', '.join(known_sets())}")
    predictions, references = [], []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prediction, answer = row["prediction"], row["answer"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path.name}, line {number}: expected 'prediction' and 'answer'") from None
        if answer is None:
            raise InputError(
                f"{path.name}, line {number}: has no answer; the public files hold questions alone",
                remedy="Only sets whose answers you have can be scored here",
            )
        predictions.append(str(prediction or ""))
        references.append(answer)
    if not predictions:
        raise InputError(f"{path.name}: holds no answer")
    return [{"name": name, "evaluator": evaluator, "predictions": predictions, "references": references}]


def _names(path: Path) -> frozenset[str]:
    content = _json(path)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path.name}: is no JSON array of names")
    return frozenset(content)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path.name}: is no JSON: {error}") from None
