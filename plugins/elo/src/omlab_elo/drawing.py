"""Which answers fight each other: PULSE-EVAL's draw, which replays its released battles."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from omlab.errors import InputError
from omlab_elo.battles import lines_of

SEED, EACH = 42, 10
#: Draws without a battle after which a pair is given up.
_PATIENCE = 10_000


@attrs.frozen
class Drawn:
    """One battle to be judged: question index from 0 and the models of both sides."""

    question: int
    model_a: str
    model_b: str


def draw(
    models: Sequence[str], answers: Mapping[str, Sequence[str | None]], *, each: int = EACH, seed: int = SEED
) -> list[Drawn]:
    """Battles of every pair of ``models``, in their order: model a = 1, 2, ... against b = 0 .. a-1, ``each`` times.

    A question is drawn evenly; side A is model a if a + b + question is even. A draw in which a model has no answer is
    made again. The generator is Python's, seeded afresh.

    Raises
    ------
    omlab.errors.InputError
        The models have not as many answers as each other, or a pair shares no question that both answered.
    """
    counts = {model: len(answers[model]) for model in models}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise InputError(f"the models have different numbers of answers: {counts}")
    total = counts[models[0]]
    generator = random.Random(seed)
    found = []
    for a, first in enumerate(models):
        for b, second in enumerate(models[:a]):
            kept = tries = 0
            while kept < each:
                tries += 1
                if tries > _PATIENCE:
                    raise InputError(f"'{first}' and '{second}' have no question that both answered")
                question = generator.randint(0, total - 1)
                sides = (first, second) if (a + b + question) % 2 == 0 else (second, first)
                if not answers[first][question] or not answers[second][question]:
                    continue
                found.append(Drawn(question, *sides))
                kept += 1
    return found


def read_answers(folder: Path, models: Sequence[str] | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """Models and, by question, what was asked and what each answered, of a folder with a file of JSON lines a model.

    Lines have ``question``, ``predict_answer`` and, if there is one, ``reference_answer`` and ``type``; line n of every
    file is the same question.

    Parameters
    ----------
    models : in which order the pairs are drawn; by file name without.

    Raises
    ------
    omlab.errors.InputError
        A file is missing, or the files do not ask the same questions.
    """
    files = {path.name.removesuffix(".gz").removesuffix(".jsonl"): path for path in sorted(folder.glob("*.jsonl*"))}
    names = list(models or files)
    absent = [name for name in names if name not in files]
    if absent or len(names) < 2:
        raise InputError(
            f"{folder}: has no answers of {absent[0]}" if absent else f"{folder}: holds answers of {len(names)} models",
            remedy="A tournament needs two files MODEL.jsonl or more",
        )
    questions: list[dict[str, Any]] = []
    for model in names:
        rows = [row for _, row in lines_of(files[model])]
        if not questions:
            keys = ("type", "question", "reference_answer")
            questions = [{key: row.get(key) or "" for key in keys} | {"answers": {}} for row in rows]
        if len(rows) != len(questions):
            raise InputError(f"{files[model].name}: has {len(rows)} answers, {names[0]} has {len(questions)}")
        for number, (row, asked) in enumerate(zip(rows, questions, strict=True), start=1):
            if row.get("question") != asked["question"]:
                raise InputError(f"{files[model].name}, line {number}: asks another question than {names[0]}")
            asked["answers"][model] = row.get("predict_answer") or ""
    return names, questions
