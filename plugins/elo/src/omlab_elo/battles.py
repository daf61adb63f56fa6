"""Battles: two models, a question, and who won."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab_elo.verdicts import UNPARSED, WINNERS, scores_of, winner_of

#: Score of side A by winner.
_POINTS = {WINNERS[0]: 1.0, WINNERS[1]: 0.0, WINNERS[2]: 0.5, WINNERS[3]: 0.5}
#: Verdicts that are listed in a report; all are counted.
LISTED = 20


@attrs.frozen(eq=False)
class Battles:
    """Battles of one dataset, in order.

    Attributes
    ----------
    name : of the dataset.
    models : names, in order of appearance.
    first, second : [battles] index of side A and of side B into ``models``.
    points : [battles] what side A won: 1, 0, or 0.5 for a tie.
    unparsed : lines (from 1) whose verdict is no pair of scores, with the verdict's beginning; they count as ties.
    differing : lines that name another winner than their verdict gives; the verdict counts.
    """

    name: str
    models: tuple[str, ...]
    first: NDArray[np.int32]
    second: NDArray[np.int32]
    points: NDArray[np.float64]
    unparsed: tuple[tuple[int, str], ...] = ()
    differing: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.points)


def lines_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of every line of a JSON lines file, gzip-compressed or not.

    Raises
    ------
    omlab.errors.InputError
        The file is missing or damaged, or a line is no JSON object.
    """
    try:
        with open(path, "rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise InputError(f"{path.name}, line {number}: expected an object, found {type(found).__name__}")
                yield number, found
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, a file of JSON lines was expected") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path.name}, line {number}: is no JSON: {error.msg}") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path.name}: cannot be read: {error}") from None


def read(path: Path) -> Battles:
    """Battles of a file of JSON lines: ``model_a``, ``model_b`` and the verdict.

    The verdict is the judge's text (``judge``, or PULSE-EVAL's ``output``, a JSON text with ``content``), else
    ``score`` (two numbers), else ``winner``.

    Raises
    ------
    omlab.errors.InputError
        A line has no models or no verdict, a model fights itself, an id (``i`` or ``id``) is there twice, or there is
        no battle at all.
    """
    names: dict[str, int] = {}
    first: list[int] = []
    second: list[int] = []
    points: list[float] = []
    unparsed: list[tuple[int, str]] = []
    differing: list[int] = []
    seen: dict[Any, int] = {}
    for number, row in lines_of(path):
        place = f"{path.name}, line {number}"
        a, b = row.get("model_a"), row.get("model_b")
        if not (isinstance(a, str) and isinstance(b, str) and a and b):
            raise InputError(f"{place}: has no 'model_a' and 'model_b'")
        if a == b:
            raise InputError(f"{place}: '{a}' fights itself")
        identity = row.get("i", row.get("id"))
        if isinstance(identity, list | dict):
            raise InputError(f"{place}: the id {identity} is neither a number nor a text")
        if identity is not None and seen.setdefault(identity, number) != number:
            raise InputError(f"{place}: the id {identity} is that of line {seen[identity]} too")
        winner, said = _winner(row, place)
        if winner == UNPARSED:
            unparsed.append((number, " ".join(said.split())[:60]))
        if row.get("winner", winner) not in (winner, None):
            differing.append(number)
        first.append(names.setdefault(a, len(names)))
        second.append(names.setdefault(b, len(names)))
        points.append(_POINTS[winner])
    if not points:
        raise InputError(f"{path.name}: holds no battle")
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("battles_")
    sides = np.array(first, np.int32), np.array(second, np.int32)
    return Battles(stem, tuple(names), *sides, np.array(points), tuple(unparsed), tuple(differing))


def _winner(row: dict[str, Any], place: str) -> tuple[str, str]:
    """Who won, and what the judge said."""
    if "judge" in row or "output" in row:
        text = row["judge"] if "judge" in row else _content(row["output"], place)
        if text is not None and not isinstance(text, str):
            raise InputError(f"{place}: the verdict is no text")
        return winner_of(scores_of(text)), text or ""
    if "score" in row:
        scores = row["score"]
        if scores is None:
            return UNPARSED, ""
        if not (isinstance(scores, list) and len(scores) == 2 and all(map(_is_number, scores))):
            raise InputError(f"{place}: 'score' is two numbers or null, found {scores!r}")
        return winner_of(scores_of(f"{scores[0]} {scores[1]}")), str(scores)
    if row.get("winner") in WINNERS:
        return row["winner"], ""
    raise InputError(f"{place}: has no verdict; expected 'judge', 'output', 'score' or 'winner' ({', '.join(WINNERS)})")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _content(output: Any, place: str) -> str | None:
    """Text of upstream's ``output``: a message, or a message written as JSON."""
    if isinstance(output, str) and output.lstrip().startswith("{"):
        try:
            output = json.loads(output)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: 'output' is no JSON: {error.msg}") from None
    return output.get("content") if isinstance(output, dict) else output


def pooled(every: Sequence[Battles], name: str = "ALL") -> Battles:
    """Battles of several datasets one after another."""
    names = {model: None for battles in every for model in battles.models}
    index = {model: number for number, model in enumerate(names)}

    def moved(battles: Battles, which: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.array([index[model] for model in battles.models], np.int32)[which]

    return Battles(
        name,
        tuple(names),
        np.concatenate([moved(b, b.first) for b in every]),
        np.concatenate([moved(b, b.second) for b in every]),
        np.concatenate([b.points for b in every]),
    )
