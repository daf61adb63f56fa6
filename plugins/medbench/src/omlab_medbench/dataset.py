"""MedBench's questions as a dataset: what a language model is asked, and what its answer is held against."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omlab.cases import Message, Text
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import needed
from omlab.errors import InputError, UsageError
from omlab.results import Generation
from omlab_medbench.sets import evaluator_of, known_sets


class MedBenchQuestions(Dataset):
    """``SET/SET.jsonl`` (or ``SET_test.jsonl``, as it is downloaded) below a folder: lines with ``question`` and
    ``answer``, which is null in the public files.

    A case is one human turn, the question as it is. Its reference is a text of JSON, ``{"set": ..., "answer": ...}``.
    """

    tells_extra = False

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Questions set by set, in the order of the files.

        Raises
        ------
        omlab.errors.InputError
            A line is no object with a question.
        """
        if split not in (None, "test"):
            return
        for name, path in self._files(needed(root, self.card.name)).items():
            for number, row in _rows(path):
                yield Item(
                    name=f"{name} {number}", split="test", files=(path,), read=partial(_case, f"{name} {number}", row),
                    reference=partial(_reference, name, row["answer"]) if row.get("answer") is not None else None,
                )  # fmt: skip

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Sets whose questions have no answers."""
        for name, path in self._files(needed(root, self.card.name)).items():
            rows = [row for _, row in _rows(path)]
            absent = sum(row.get("answer") is None for row in rows)
            if absent:
                what = f"{absent} of {len(rows)} questions have no answer: they can be asked and not scored here"
                yield Problem(kind="reference", where=name, what=what, error=False)

    def facts(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Questions of each set, and who scores them."""
        table = {
            name: f"{sum(1 for _ in _rows(path)):,} questions, {evaluator_of(name)}"
            for name, path in self._files(needed(root, self.card.name)).items()
        }
        return {"Sets": table}

    def _files(self, root: Path) -> dict[str, Path]:
        wanted = self.options["set"]
        unknown = [name for name in wanted if evaluator_of(name) is None]
        if unknown:
            raise UsageError(f"MedBench has no set '{unknown[0]}'", remedy=f"It has {', '.join(known_sets())}")
        found = {}
        for name in wanted or known_sets():
            places = [root / name / f"{name}{end}.jsonl" for end in ("", "_test")] + [root / f"{name}.jsonl"]
            path = next((place for place in places if place.is_file()), None)
            if path is not None:
                found[name] = path
            elif wanted:
                raise InputError(f"{root}: has no {name}/{name}.jsonl")
        if not found:
            raise InputError(f"{root}: has no set of MedBench", remedy="Expected SET/SET.jsonl, say MedHG/MedHG.jsonl")
        return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
                    raise InputError(f"{path.name}, line {number}: has no 'question'")
                yield number, row
    except json.JSONDecodeError as error:
        raise InputError(f"{path.name}, line {number}: is no JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _case(name: str, row: Mapping[str, Any]) -> Text:
    return Text(name=name, messages=[Message(role="user", content=row["question"])])


def _reference(name: str, answer: Any) -> Generation:
    return Generation(text=json.dumps({"set": name, "answer": answer}, ensure_ascii=False))
