"""Which images of a set are in which part: upstream's list files, and its few-shot lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab_medfmc.sets import Set, read_labels, text_of

Labels = Mapping[str, NDArray[np.int64]]
#: Our split -> names of upstream's files, the first that is there. ``challenge`` is the challenge's validation set, of
#: which upstream published the names first and the labels later.
PARTS = {
    "trainval": ("{set}_trainval",),
    "train": ("{set}_train_20", "train_20"),
    "val": ("{set}_val_20", "val_20"),
    "test": ("{set}_test_WithLabel", "test_WithLabel"),
    "challenge": ("{set}_val", "{set}_test_WithoutLabel", "test_WithoutLabel"),
}
#: The same of the two sets that were not in the challenge: the lists of the dataset paper's few-shot code.
POOLS = {"trainval": ("{set}_fewshot-pool", "{set}_pool"), "test": ("{set}_test",)}
SHOTS_FILE = "few_shot_splits.json"


def find_list(root: Path, which: Set, part: str) -> Path | None:
    """The list file of a part: in the folder or one below it, plain or compressed."""
    names = (POOLS if which.name in ("neojaundice", "retino") else PARTS).get(part, ())
    for pattern in names:
        found = find_file(root, [pattern.format(set=name) for name in _spellings(which)], (".txt", ".txt.gz"))
        if found is not None:
            return found
    return None


def find_file(root: Path, stems: list[str], endings: tuple[str, ...]) -> Path | None:
    """A file of one of the names, in the folder or in ``lists`` or ``data_anns`` below it."""
    for folder in (root, root / "lists", root / "data_anns"):
        for stem in stems:
            for ending in endings:
                path = folder / f"{stem}{ending}"
                if path.is_file():
                    return path
    return None


def _spellings(which: Set) -> list[str]:
    return [which.name, {"neojaundice": "NeoJaundice", "retino": "Retino"}.get(which.name, which.name)]


def read_part(path: Path, which: Set) -> dict[str, NDArray[np.int64] | None]:
    """Image -> labels, ``None`` for all where the list has names alone, in the order of the file.

    Raises
    ------
    omlab.errors.InputError
        The file is damaged, or neither a list of names nor one with labels.
    """
    lines = [line.strip() for line in text_of(path).splitlines() if line.strip()]
    if path.name.startswith(("test_WithoutLabel", f"{which.name}_test_WithoutLabel")):
        found: dict[str, NDArray[np.int64] | None] = dict.fromkeys(lines)
        if len(found) != len(lines):
            raise InputError(f"{path.name}: an image is there twice")
        return found
    return dict(read_labels(path, which))


def read_repeated(path: Path, which: Set, known: Labels) -> list[str]:
    """Images of a few-shot list, in its order; an image that is of several classes may stand there several times.

    Raises
    ------
    omlab.errors.InputError
        An image is not in ``known``.
    """
    count = len(which.classes) if which.separator == " " else 1
    names = [line.strip().rsplit(" ", count)[0] for line in text_of(path).splitlines() if line.strip()]
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise InputError(f"{path.name}: {unknown} is not in the list trainval")
    return names


def shots_of(root: Path, which: Set, known: Labels, shots: int, experiment: int) -> dict[str, list[str]]:
    """The released few-shot lists ``train`` and ``val`` of an experiment.

    They are upstream's files ``SET_N-shot_train_expK.txt``, or one file of line numbers for all,
    ``few_shot_splits.json``.

    Raises
    ------
    omlab.errors.InputError
        There are no such lists, or they do not fit ``trainval``.
    """
    found = {}
    for part in ("train", "val"):
        path = find_file(root, [f"{which.name}_{shots}-shot_{part}_exp{experiment}"], (".txt", ".txt.gz"))
        if path is not None:
            found[part] = read_repeated(path, which, known)
    if len(found) == 2:
        return found
    path = find_file(root, [SHOTS_FILE], ("", ".gz"))
    if path is None:
        raise InputError(
            f"{root}: has no {which.name}_{shots}-shot_train_exp{experiment}.txt and no {SHOTS_FILE}",
            remedy="Take the lists from openmedlab/MedFM, folder data_backup/MedFMC or data_anns",
        )
    return {part: list(names) for part, names in _numbered(path, which, known, shots, experiment)}


def _numbered(path: Path, which: Set, known: Labels, shots: int, experiment: int) -> Iterator[tuple[str, list[str]]]:
    names = list(known)
    try:
        table: Any = json.loads(text_of(path))[which.name][str(shots)][str(experiment)]
        for part in ("train", "val"):
            yield part, [names[int(line)] for line in table[part]]
    except (KeyError, IndexError, TypeError, ValueError):
        raise InputError(
            f"{path.name}: has no {shots}-shot lists of {which.name} in experiment {experiment}, or they name lines "
            "that trainval lacks"
        ) from None
