"""What datasets in plain folders share: names without a list of paths, references with names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab.results import Classification, Label, Segmentation, read_segmentation
from omlab.results.colours import colour_of

#: Words that lists and folders use for a split -> ours.
SPLIT_WORDS = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip


def file_names(folder: Path, endings: str | tuple[str, ...] = "") -> list[str]:
    """Names of the files of a folder, sorted; hidden ones left out. Names and not paths: a tenth of the memory.

    Raises
    ------
    omlab.errors.InputError
        The folder is not there.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.name[0] != "." and e.name.endswith(endings) and e.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}", remedy="Is the dataset whole?") from None


def folder_names(folder: Path) -> list[str]:
    """Names of the folders of a folder, sorted; hidden ones left out; none where the folder is not there."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())
    except OSError:
        return []


def needed(root: Path | None, dataset: str) -> Path:
    """The folder that a dataset reads. Raises :class:`omlab.errors.InputError` without one."""
    if root is None:
        raise InputError(f"{dataset} needs a folder", remedy=f"Name it: {dataset}:PATH")
    return root


def one_class(classes: Sequence[str], index: int) -> Classification:
    """The reference of a case that is of one class."""
    probabilities = np.zeros(len(classes), np.float32)
    probabilities[index] = 1.0
    return Classification(classes=classes, probabilities=probabilities)


def some_classes(classes: Sequence[str], values: Sequence[int] | NDArray[np.integer]) -> Classification:
    """The reference of a case that may be of several classes, or of none: 1 for each that it is of."""
    return Classification(classes=classes, probabilities=np.asarray(values, np.float32), exclusive=False)


def label_map(
    path: Path, structures: Sequence[Label] = (), *, binary: bool = False, names: Mapping[int, str] | None = None
) -> Segmentation:
    """A label map with names.

    A picture of 0 and 255 alone is a mask of one structure, value 1: that is how drawing programs write them.

    Parameters
    ----------
    structures : what its values are; a value beyond them is an error. As the file says without any.
    binary : every value but 0 is the first structure.
    names : names of single values, where ``structures`` are not known.

    Raises
    ------
    omlab.errors.InputError
        Damaged, no label map, or values that no structure has.
    """
    found = read_segmentation(path)
    labels = found.labels
    if binary or (found.geometry is None and _is_drawn(labels)):
        labels = (labels > 0).astype(np.uint8)
        own = structures[:1] or (Label(value=1, name=(names or {}).get(1, "label 1"), colour=colour_of(1)),)
        return Segmentation(labels=labels, structures=own, geometry=found.geometry)
    if not structures:
        named = names or {}
        own = tuple(attrs.evolve(label, name=named.get(label.value, label.name)) for label in found.structures)
        return Segmentation(labels=labels, structures=own, geometry=found.geometry)
    known = {label.value for label in structures}
    beyond = sorted({label.value for label in found.structures if label.value not in known} & set(np.unique(labels)))
    if beyond:
        shown = ", ".join(str(int(v)) for v in beyond[:5])
        raise InputError(f"{path.name}: has the values {shown}, the dataset's labels end at {max(known)}")
    return Segmentation(labels=labels, structures=structures, geometry=found.geometry)


def _is_drawn(labels: NDArray[np.unsignedinteger]) -> bool:
    """Are all values 0 or 255?"""
    return int(labels.max(initial=0)) == 255 and bool(np.isin(labels, (0, 255)).all())
