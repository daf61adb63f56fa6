"""Tables of predictions and references."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from omlab.errors import InputError
from omlab.evaluator import Pair
from omlab.results import Classification

_NAMES = ("case", "name", "image", "id", "file")


def read_pairs(predictions: Path, references: Path) -> list[Pair]:
    """Cases of two CSV files, both with a column that names the case (``case``, ``name``, ``image``, ``id``, ``file``).

    Predictions have a column of probabilities for every class, called after it or ``p(class)`` (so ``cases.csv`` of
    ``omlab run`` can be given); rows of failed cases are passed over. References have a column ``label``, or one of
    0 and 1 for every class.

    Raises
    ------
    omlab.errors.InputError
        A file is damaged, a case is there twice or only in one of the files, a value makes no sense.
    """
    truth = _rows(references)
    given = {name: row for name, row in _rows(predictions).items() if row.get("status", "done") != "failed"}
    if not given:
        raise InputError(f"{predictions.name}: holds no case")
    first = next(iter(given.values()))
    columns = {c.removeprefix("p(").removesuffix(")"): c for c in first if c.startswith("p(")} or {
        c: c for c in first if c not in (*_NAMES, "label", "split", "status", "headline", "cause")
    }
    classes = tuple(columns)
    absent, unknown = [n for n in truth if n not in given], [n for n in given if n not in truth]
    if absent or unknown:
        side, which = ("no prediction", absent) if absent else ("no reference", unknown)
        raise InputError(f"{len(which)} cases have {side}, first '{which[0]}'", remedy="Score the same cases")
    single = "label" in next(iter(truth.values()))
    pairs = []
    for name, row in given.items():
        values = _numbers([row[column] for column in columns.values()], f"{predictions.name}: case '{name}'")
        prediction = Classification(classes=classes, probabilities=values, exclusive=single)
        pairs.append(Pair(name=name, prediction=prediction, reference=_reference(truth[name], classes, name, single)))
    return pairs


def _reference(row: dict[str, str], classes: tuple[str, ...], name: str, single: bool) -> Classification:
    if single:
        label = row["label"].strip()
        if label not in classes:
            raise InputError(f"case '{name}' is of class '{label}', the predictions have {', '.join(classes)}")
        values = np.array([float(c == label) for c in classes], np.float32)
    else:
        lacking = [c for c in classes if c not in row]
        if lacking:
            raise InputError(f"the references have no column '{lacking[0]}'", remedy="Or give a column 'label'")
        values = _numbers([row[c] for c in classes], f"references: case '{name}'")
        if not np.isin(values, (0, 1)).all():
            raise InputError(f"references: case '{name}' has values that are neither 0 nor 1")
    return Classification(classes=classes, probabilities=values, exclusive=single)


def _rows(path: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            naming = next((name for name in _NAMES if name in (rows.fieldnames or ())), None)
            if naming is None:
                raise InputError(f"{path.name}: has no column that names the case ({', '.join(_NAMES)})")
            for row in rows:
                name = (row.pop(naming) or "").strip()
                if name in found:
                    raise InputError(f"{path.name}, line {rows.line_num}: the case '{name}' is there twice")
                found[name] = {key: value or "" for key, value in row.items() if key is not None}
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, a table was expected") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not found:
        raise InputError(f"{path.name}: holds no case")
    return found


def _numbers(texts: list[str], place: str) -> np.ndarray:
    values = []
    for text in texts:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{place} has '{text}', a number was expected")
        values.append(value)
    return np.array(values, np.float32)
