"""The 14 datasets that upstream evaluates on without training: which structures make each of their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import UnknownName


@attrs.frozen
class Mapped:
    """A label of a dataset.

    Attributes
    ----------
    name : as upstream shows it.
    reference : labels of the dataset's own files that are joined into it.
    classes : structures of STU-Net that are joined into it.
    """

    name: str
    reference: tuple[int, ...] = attrs.field(converter=tuple)
    classes: tuple[str, ...] = attrs.field(converter=tuple)


@cache
def tables() -> Mapping[str, tuple[Mapped, ...]]:
    """Dataset -> its labels; the first becomes 1, the second 2, and so on."""
    data = json.loads((files("omlab_stunet") / "datasets.json").read_text("utf-8"))
    return {task: tuple(Mapped(**row) for row in rows) for task, rows in data.items()}


def table(name: str) -> tuple[Mapped, ...]:
    """Labels of a dataset by its name, with or without ``TaskNNN_``, in any case.

    Raises
    ------
    UnknownName
        There is none.
    """
    wanted = name.lower()
    for task, rows in tables().items():
        if wanted in (task.lower(), task.lower().partition("_")[2]):
            return rows
    raise UnknownName(f"'stunet' knows no dataset '{name}'", remedy=f"It knows: {', '.join(tables())}")


def renumbering(groups: Sequence[Sequence[int]], most: int) -> NDArray[np.uint8]:
    """Look-up table [most + 1]: labels of the n-th group become n + 1, all others 0."""
    found = np.zeros(most + 1, np.uint8)
    for number, group in enumerate(groups, start=1):
        found[list(group)] = number
    return found


def renumber(labels: NDArray[Any], groups: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """A label map with the n-th group of labels as n + 1 and all others as 0."""
    most = max(int(labels.max(initial=0)), *(label for group in groups for label in group))
    return renumbering(groups, most)[labels]
