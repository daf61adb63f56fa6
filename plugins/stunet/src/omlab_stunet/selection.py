"""Which of the network's structures a result names: all, some, or those of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cards import LabelCard
from omlab.errors import UnknownName, UsageError
from omlab.results import Label
from omlab_stunet import datasets


@attrs.frozen(eq=False)
class Selection:
    """Structures of a result, and what becomes of the network's labels.

    Attributes
    ----------
    table : [labels + 1] uint8, new label of each of the network's; ``None`` where they stay.
    """

    structures: tuple[Label, ...]
    table: NDArray[np.uint8] | None = None

    def apply(self, labels: NDArray[np.uint8]) -> None:
        """Renumber a label map in place, a plane at a time."""
        if self.table is None:
            return
        axis = int(np.argmax(labels.strides))
        for plane in np.moveaxis(labels, axis, 0):
            plane[...] = self.table[plane]


def of(labels: Sequence[LabelCard], structures: str = "", dataset: str = "", *, model: str = "stunet") -> Selection:
    """What the options ``--structures`` and ``--dataset`` choose; ``model`` is for messages.

    Raises
    ------
    UnknownName
        A name or pattern fits no structure, or there is no such dataset.
    UsageError
        Both options are given, or the dataset needs structures that the model does not have.
    """
    if structures and dataset:
        raise UsageError(f"'{model}': of the options 'structures' and 'dataset' only one can be given")
    if structures:
        return _some(labels, [part.strip() for part in structures.split(",") if part.strip()], model)
    if dataset:
        return _mapped(labels, datasets.table(dataset), dataset, model)
    return Selection(tuple(Label.of(label) for label in labels))


def _some(labels: Sequence[LabelCard], wanted: Sequence[str], model: str) -> Selection:
    import difflib

    names = [label.name for label in labels]
    chosen: set[str] = set()
    for pattern in wanted:
        fitting = [name for name in names if fnmatchcase(name.lower(), pattern.lower())]
        if not fitting:
            near = difflib.get_close_matches(pattern, names, n=3)
            raise UnknownName(
                f"'{model}' has no structure '{pattern}'",
                remedy=f"Did you mean: {', '.join(near)}?" if near else f"omlab info {model} lists them",
            )
        chosen.update(fitting)
    table = np.zeros(max(label.value for label in labels) + 1, np.uint8)
    kept = tuple(Label.of(label) for label in labels if label.name in chosen)
    for label in kept:
        table[label.value] = label.value
    return Selection(kept, table)


def _mapped(labels: Sequence[LabelCard], rows: Sequence[datasets.Mapped], dataset: str, model: str) -> Selection:
    values = {label.name: label.value for label in labels}
    lacking = [name for row in rows for name in row.classes if name not in values]
    if lacking:
        raise UsageError(
            f"'{model}': the dataset '{dataset}' needs '{lacking[0]}', which it does not segment",
            remedy="Use a model with the 104 structures of TotalSegmentator",
        )
    table = datasets.renumbering([[values[name] for name in row.classes] for row in rows], max(values.values()))
    return Selection(tuple(Label.of(LabelCard(value=n, name=row.name)) for n, row in enumerate(rows, start=1)), table)
