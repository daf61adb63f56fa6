"""Ranks over datasets, and the F1 of the triage set."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from omlab.errors import InputError

_TINY = 1e-10


def ranks_by_order(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks, 1 for the greatest; among equals the later one has the better rank (the paper's Table 2, whose rows are in
    the order of the first column's medians)."""
    values = np.asarray(values, np.float64)
    return (len(values) - np.argsort(np.argsort(values, kind="stable"), kind="stable")).astype(np.float64)


def ranks_by_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks, 1 for the greatest; equals share the mean of theirs."""
    values = np.asarray(values, np.float64)
    greater = (values[None, :] > values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return greater + (equal + 1) / 2


def triage(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall and micro F1 of answers that name departments, joined by ``|``.

    Only ASCII blanks are dropped. Parts are lists: a department named twice counts twice as predicted, and an empty
    answer counts as one part.

    Raises
    ------
    ValueError
        There are not as many predictions as references.
    """
    predicted = named = hits = same = 0
    for reference, prediction in zip(references, predictions, strict=True):
        wanted, given = (text.replace(" ", "").split("|") for text in (reference, prediction))
        predicted += len(given)
        named += len(wanted)
        hits += sum(part in given for part in wanted)
        same += set(wanted) == set(given)
    p, r = hits / (predicted + _TINY), hits / (named + _TINY)
    return {"acc": same / len(references) if references else 0.0, "p": p, "r": r, "f1": 2 * p * r / (p + r + _TINY)}


def read_triage(path: Path) -> dict[str, dict[str, float]]:
    """Model -> :func:`triage` of a JSON file with ``references`` and ``predictions`` (model -> answers).

    Raises
    ------
    omlab.errors.InputError
        The file is missing, damaged or of another form.
    """
    try:
        data = path.read_bytes()
        content: Any = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, answers of the triage set were expected") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path.name}: cannot be read: {error}") from None
    references = content.get("references") if isinstance(content, Mapping) else None
    predictions = content.get("predictions") if isinstance(content, Mapping) else None
    if not isinstance(references, list) or not isinstance(predictions, Mapping):
        raise InputError(f"{path.name}: expected 'references' and 'predictions' of every model")
    found = {}
    for model, answers in predictions.items():
        if len(answers) != len(references):
            raise InputError(
                f"{path.name}: '{model}' has {len(answers)} answers, there are {len(references)} references"
            )
        found[str(model)] = triage(references, [answer or "" for answer in answers])
    return found
