"""Images with a table: a row an image, with its label or labels, its split and its patient."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import attrs

from omlab.cases import read
from omlab.dataset import Dataset, Item
from omlab.datasets.folders import SPLIT_WORDS, needed, one_class, some_classes
from omlab.errors import InputError, UsageError
from omlab.files import natural
from omlab.vocabulary import InputKind

#: Names of columns that are understood, the first that is there.
IMAGE = ("image", "file", "filename", "file_name", "path", "image_path", "image_id", "name", "id")
LABEL = ("label", "class", "target", "diagnosis", "grade", "finding")
SPLIT = ("split", "set", "subset", "partition")
GROUP = ("patient", "patient_id", "subject", "subject_id", "group", "study", "study_id")
#: Endings that are tried for an image that the table names without one.
ENDINGS = ("", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")


@attrs.frozen
class Columns:
    """Which column is what; ``labels`` of several columns hold 0 and 1, that of one a name."""

    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None


class ImageTable(Dataset):
    """``root/*.csv`` with paths of images below ``root`` or ``root/images``.

    One label column holds the name (or number) of the class; several hold 0 and 1 for an image that may be of several
    classes or of none. An empty label is an image without a reference. Rows without a split are ``train``.
    """

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """The label columns where there are several, else the values of the label column, in natural order."""
        root = needed(root, self.card.name)
        columns = self._columns(root)
        if len(columns.labels) != 1:
            return columns.labels
        (label,) = columns.labels
        found = {text for _, row in self._rows(root) if (text := (row[label] or "").strip())}
        return tuple(sorted(found, key=natural))

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Images in the order of the table.

        Raises
        ------
        omlab.errors.InputError
            The table lacks a column, or a row has an unknown split or a label that is none.
        """
        root = needed(root, self.card.name)
        columns = self._columns(root)
        classes = self.classes(root)
        places = {name: index for index, name in enumerate(classes)}
        for number, row in self._rows(root):
            image = (row[columns.image] or "").strip()
            if not image:
                raise InputError(f"{self._table(root).name}, line {number}: names no image")
            of = _split(row, columns, self._table(root), number)
            if split not in (None, of):
                continue
            path = _place(root, image)
            yield Item(
                name=image, split=of, files=(path,), read=partial(read, path, kind=(InputKind.IMAGE,)),
                reference=self._reference(row, columns, classes, places, number, root),
                group=(row[columns.group] or "").strip() if columns.group else "",
            )  # fmt: skip

    def _reference(
        self, row: Mapping[str, str], columns: Columns, classes: tuple[str, ...], places: Mapping[str, int],
        number: int, root: Path,
    ) -> partial | None:  # fmt: skip
        if len(columns.labels) == 1:
            text = (row[columns.labels[0]] or "").strip()
            return partial(one_class, classes, places[text]) if text else None
        texts = [(row[label] or "").strip() for label in columns.labels]
        if not any(texts):
            return None
        values = [_flag(text) for text in texts]
        if None in values:
            wrong = texts[values.index(None)]
            raise InputError(f"{self._table(root).name}, line {number}: label '{wrong}' is neither 0 nor 1")
        return partial(some_classes, classes, values)

    def _table(self, root: Path) -> Path:
        named = self.options.get("table")
        if named:
            path = root / named
            if not path.is_file():
                raise InputError(f"{path}: does not exist, a table of images was expected")
            return path
        found = sorted(p for p in root.glob("*.csv") if not p.name.startswith("."))
        if len(found) != 1:
            raise InputError(
                f"{root}: holds {len(found)} tables (*.csv), one was expected",
                remedy=f"Name one: {self.card.name},table=FILE.csv:PATH",
            )
        return found[0]

    def _rows(self, root: Path) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number and row, one by one; the table is never held."""
        path = self._table(root)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                head = file.readline()
                file.seek(0)
                delimiter = max(",;\t", key=head.count)
                rows = csv.DictReader(file, delimiter=delimiter)
                for row in rows:
                    if None in row or None in row.values():
                        raise InputError(
                            f"{path.name}, line {rows.line_num}: has another number of columns than the first line"
                        )
                    yield rows.line_num, row
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None

    def _columns(self, root: Path) -> Columns:
        path = self._table(root)
        first = next(self._rows(root), None)
        if first is None:
            raise InputError(f"{path.name}: has no row")
        names = list(first[1])
        image = self._one("image", IMAGE, names, path)
        if image is None:
            raise InputError(
                f"{path.name}: has no column of images, it has {', '.join(names)}",
                remedy=f"Name it: {self.card.name},image=COLUMN:PATH",
            )
        split, group = self._one("split", SPLIT, names, path), self._one("group", GROUP, names, path)
        given = list(self.options.get("label") or ())
        for name in given:
            if name not in names:
                raise UsageError(f"{path.name}: has no column '{name}'", remedy=f"It has: {', '.join(names)}")
        if given:
            return Columns(image, tuple(given), split, group)
        single = self._one("", LABEL, names, path)
        if single is not None:
            return Columns(image, (single,), split, group)
        rest = [name for name in names if name not in (image, split, group)]
        return Columns(image, tuple(n for n in rest if self._is_flag(root, n)), split, group)

    def _one(self, option: str, known: tuple[str, ...], names: list[str], path: Path) -> str | None:
        named = self.options.get(option) if option else None
        if named:
            if named not in names:
                raise UsageError(f"{path.name}: has no column '{named}'", remedy=f"It has: {', '.join(names)}")
            return str(named)
        by_word = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(names)}
        return next((by_word[word] for word in known if word in by_word), None)

    def _is_flag(self, root: Path, column: str) -> bool:
        """Are the first values of a column all 0, 1 or empty?"""
        for number, (_, row) in enumerate(self._rows(root)):
            if row[column].strip() and _flag(row[column].strip()) is None:
                return False
            if number >= 200:
                break
        return True


def _flag(text: str) -> int | None:
    return {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1}.get(text)


def _split(row: Mapping[str, str], columns: Columns, table: Path, number: int) -> str:
    text = (row[columns.split] or "").strip() if columns.split else ""
    found = SPLIT_WORDS.get(text.lower(), "" if text else "train")
    if not found:
        raise InputError(
            f"{table.name}, line {number}: '{text}' is no split", remedy="The splits are train, val and test"
        )
    return found


def _place(root: Path, image: str) -> Path:
    """Where an image is; where it should be if it is nowhere, so that the error names that place."""
    for folder in (root, root / "images"):
        for ending in ENDINGS:
            path = folder / f"{image}{ending}"
            if path.is_file():
                return path
    return root / image
