"""Folders of features as a dataset for training slide classifiers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from omlab.dataset import Dataset, Item
from omlab.datasets.folders import one_class
from omlab.errors import InputError
from omlab_clam import bags

SPLITS = ("train", "val", "test")
LABELS = "labels.csv"


class FeatureFolder(Dataset):
    """Features of slides with a class each.

    Either ``ROOT/labels.csv`` with the columns ``slide_id`` and ``label`` (and, where there are some, ``case_id`` for
    the patient and ``split``), or class folders: ``ROOT/{train,val,test}/CLASS/slide.h5`` or ``ROOT/CLASS/slide.h5``.
    Beside a table, ``splits_N.csv`` with the columns train, val and test, as CLAM's scripts make it, says what fold N
    learns from; features lie in ``h5_files/SLIDE.h5``, ``SLIDE.h5``, ``SLIDE/features.h5``, ``pt_files/SLIDE.pt`` or
    ``SLIDE.pt``.
    """

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Labels of the table, or names of the class folders, sorted."""
        return tuple(sorted({label for _, label, _, _ in self._rows(root)}))

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Slides in the order of the table, or of class and name."""
        rows = self._rows(root)
        classes = tuple(sorted({label for _, label, _, _ in rows}))
        for path, label, part, group in rows:
            if split in (None, part):
                yield Item(
                    name=path.stem if path.stem != "features" else path.parent.name, split=part, group=group,
                    files=(path,), read=partial(bags.read, path),
                    reference=partial(one_class, classes, classes.index(label)),
                )  # fmt: skip

    def _rows(self, root: Path | None) -> list[tuple[Path, str, str, str]]:
        """(file, label, split, patient) of every slide that has a label."""
        if root is None or not root.is_dir():
            raise InputError(f"slide-features needs a folder, found {root}", remedy="Name it: --on slide-features:PATH")
        rows = self._table(root) if (root / LABELS).is_file() else _class_folders(root)
        if not rows:
            raise InputError(
                f"{root} holds no features of slides with a class",
                remedy=f"Expected ROOT/{LABELS} with slide_id and label, or ROOT/CLASS/slide.h5",
            )
        return rows

    def _table(self, root: Path) -> list[tuple[Path, str, str, str]]:
        table = root / LABELS
        parts = _splits(root / f"splits_{self.options['fold']}.csv")
        found = []
        for number, row in enumerate(_read(table, ("slide_id", "label")), 2):
            slide, label = row["slide_id"].strip(), row["label"].strip()
            part = parts.get(slide, "") if parts else (row.get("split") or "train").strip()
            if not part:
                continue
            if part not in SPLITS:
                raise InputError(f"{table}: row {number} has the split '{part}', expected {', '.join(SPLITS)}")
            path = bags.find(root, slide)
            if path is None:
                raise InputError(
                    f"{table}: row {number}: there are no features of slide '{slide}'",
                    remedy=f"They are looked for as {', '.join(bags.PLACES).format('SLIDE')}",
                )
            found.append((path, label, part, (row.get("case_id") or "").strip()))
        return found


def _read(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in needed if name not in (reader.fieldnames or ())]
            if lacking:
                raise InputError(f"{path}: has no column '{lacking[0]}', it has {', '.join(reader.fieldnames or ())}")
            return [{key: value or "" for key, value in row.items() if key} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _splits(path: Path) -> dict[str, str]:
    """Slide -> split; empty where there is no such file."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    for row in _read(path, SPLITS):
        for name in SPLITS:
            slide = row[name].strip()
            if slide and found.setdefault(slide, name) != name:
                raise InputError(f"{path}: slide '{slide}' is in the splits {found[slide]} and {name}")
    return found


def _class_folders(root: Path) -> list[tuple[Path, str, str, str]]:
    parts = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"train": root}
    return [
        (path, folder.name, part, "")
        for part, base in parts.items()
        for folder in sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
        for path in sorted([*folder.glob("*.h5"), *folder.glob("*.pt"), *folder.glob("*/features.h5")])
    ]
