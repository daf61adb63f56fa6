"""BIDS: ``sub-*/[ses-*]/anat/*_T1w.nii.gz`` with label maps below ``derivatives`` and ``participants.tsv``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import SPLIT_WORDS, file_names, folder_names, label_map, needed, one_class
from omlab.errors import InputError, UsageError
from omlab.files import natural
from omlab.vocabulary import InputKind

ENDINGS = (".nii.gz", ".nii")
#: Suffixes of label maps, the first that is there.
LABELS = ("dseg", "mask")


class Bids(Dataset):
    """A BIDS dataset: one scan a subject, session and run.

    The reference is the label map below ``derivatives`` whose entities include those of the scan; with the option
    ``column`` it is the subject's value in that column of ``participants.tsv``. A column ``split`` there splits by
    subject; all is ``all`` without one.
    """

    tells_extra = False

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Values of the option ``column``, else the names of ``dseg.tsv``."""
        root = needed(root, self.card.name)
        column = self.options.get("column")
        if column:
            values = {row[column] for row in self._participants(root).values() if row[column] not in ("", "n/a")}
            return tuple(sorted(values, key=natural))
        return tuple(self._names(root).values())

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Scans in order of subject, session and name."""
        root = needed(root, self.card.name)
        column = self.options.get("column")
        people = self._participants(root) if column or (root / "participants.tsv").is_file() else {}
        classes = self.classes(root)
        names = self._names(root)
        for subject, folder in self._folders(root):
            person = people.get(subject, {})
            of = _split(person, subject)
            if split not in (None, of):
                continue
            for name in self._scans(folder):
                path = folder / name
                mask = None if column else self._mask(root, path)
                reference = None
                if column and person.get(column, "n/a") not in ("", "n/a"):
                    reference = partial(one_class, classes, classes.index(person[column]))
                elif mask is not None:
                    reference = partial(label_map, mask, names=names)
                yield Item(
                    name=_bare(name), split=of, group=subject, files=(path, mask) if mask else (path,),
                    read=partial(read, path, kind=(InputKind.VOLUME,)), reference=reference,
                )  # fmt: skip

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Subjects that the table lacks, and those that the table has and the folder lacks."""
        root = needed(root, self.card.name)
        if not (root / "dataset_description.json").is_file():
            yield Problem(
                kind="layout", where="dataset_description.json", what="is missing; BIDS asks for it", error=False
            )
        if not (root / "participants.tsv").is_file():
            return
        known, there = set(self._participants(root)), {n for n in folder_names(root) if n.startswith("sub-")}
        for subject in sorted(known - there):
            yield Problem(kind="missing", where=subject, what="is in participants.tsv and has no folder")
        for subject in sorted(there - known):
            yield Problem(kind="extra", where=subject, what="has a folder and is not in participants.tsv", error=False)

    def _folders(self, root: Path) -> Iterator[tuple[str, Path]]:
        kind = self.options.get("datatype") or "anat"
        subjects = [name for name in folder_names(root) if name.startswith("sub-")]
        if not subjects:
            raise InputError(f"{root}: holds no folder sub-*", remedy="Name the folder of a BIDS dataset")
        for subject in subjects:
            sessions = [name for name in folder_names(root / subject) if name.startswith("ses-")]
            for folder in [root / subject / s for s in sessions] or [root / subject]:
                if (folder / kind).is_dir():
                    yield subject, folder / kind

    def _scans(self, folder: Path) -> list[str]:
        ending = tuple(f"_{self.options.get('suffix') or 'T1w'}{e}" for e in ENDINGS)
        return file_names(folder, ending)

    def _mask(self, root: Path, scan: Path) -> Path | None:
        """The label map of a scan: same folder below a derivative, and all entities of the scan in its name."""
        wanted = set(_bare(scan.name).split("_")[:-1])
        inside = scan.parent.relative_to(root)
        only = self.options.get("derivative")
        for pipeline in [only] if only else folder_names(root / "derivatives"):
            folder = root / "derivatives" / pipeline / inside
            if not folder.is_dir():
                continue
            names = file_names(folder, ENDINGS)
            for suffix in LABELS:
                for name in names:
                    *entities, own = _bare(name).split("_")
                    if own == suffix and wanted <= set(entities):
                        return folder / name
        return None

    def _names(self, root: Path) -> dict[int, str]:
        """Value -> name, from the first ``*dseg.tsv`` of the derivatives."""
        only = self.options.get("derivative")
        for pipeline in [only] if only else folder_names(root / "derivatives"):
            for path in sorted((root / "derivatives" / pipeline).glob("*dseg.tsv")):
                try:
                    return {int(row["index"]): row["name"] for row in _table(path)}
                except (KeyError, ValueError):
                    raise InputError(f"{path}: has no columns 'index' and 'name'") from None
        return {}

    def _participants(self, root: Path) -> dict[str, dict[str, str]]:
        path = root / "participants.tsv"
        rows = list(_table(path))
        column = self.options.get("column")
        for name in ("participant_id", *([column] if column else ())):
            if rows and name not in rows[0]:
                raise UsageError(f"{path}: has no column '{name}'", remedy=f"It has: {', '.join(rows[0])}")
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            subject = row["participant_id"]
            if subject in found:
                raise InputError(f"{path}: {subject} is there twice")
            found[subject] = row
        return found


def _table(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                yield {str(key): (value or "").strip() for key, value in row.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _split(person: Mapping[str, str], subject: str) -> str:
    text = person.get("split", "")
    if text in ("", "n/a"):
        return "all"
    found = SPLIT_WORDS.get(text.lower())
    if found is None:
        raise InputError(f"participants.tsv: '{text}' of {subject} is no split", remedy="They are train, val and test")
    return found


def _bare(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")
