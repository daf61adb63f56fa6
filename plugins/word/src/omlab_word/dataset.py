"""Scans and label maps of the same name in a folder for each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import file_names, label_map, needed
from omlab.results import Label
from omlab.vocabulary import InputKind

FOLDERS = {"train": "Tr", "val": "Val", "test": "Ts"}
ENDING = ".nii.gz"


class Word(Dataset):
    """``word_NNNN.nii.gz`` in ``imagesTr``, ``labelsTr``, ``imagesVal``, ``labelsVal``, ``imagesTs``, ``labelsTs``."""

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Scans in order of split and number; those without a label map have no reference."""
        structures = tuple(map(Label.of, self.card.labels))
        for name, images, labels in self._folders(needed(root, self.card.name), split):
            known = set(file_names(labels, ENDING)) if labels.is_dir() else set()
            for file in file_names(images, ENDING):
                pair = (images / file, labels / file) if file in known else (images / file,)
                yield Item(
                    name=file.removesuffix(ENDING), split=name, files=pair, group=file.removesuffix(ENDING),
                    read=partial(read, images / file, kind=(InputKind.VOLUME,)),
                    reference=partial(label_map, labels / file, structures) if file in known else None,
                )  # fmt: skip

    def size(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> int | None:
        """Scans of the folders."""
        folders = self._folders(needed(root, self.card.name), split)
        return sum(len(file_names(images, ENDING)) for _, images, _ in folders)

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Scans without a label map, and the reverse."""
        for _, images, labels in self._folders(needed(root, self.card.name), None):
            if not labels.is_dir():
                yield Problem(kind="layout", where=labels.name, what="is missing", error=images.name != "imagesTs")
                continue
            scans, maps = (set(file_names(folder, ENDING)) for folder in (images, labels))
            for file in sorted(scans - maps):
                yield Problem(
                    kind="reference", where=f"{images.name}/{file}", what=f"has no label map in {labels.name}"
                )
            for file in sorted(maps - scans):
                yield Problem(kind="extra", where=f"{labels.name}/{file}", what=f"has no scan in {images.name}")

    @staticmethod
    def _folders(root: Path, split: str | None) -> Iterator[tuple[str, Path, Path]]:
        for name, part in FOLDERS.items():
            images = root / f"images{part}"
            if split in (None, name) and images.is_dir():
                yield name, images, root / f"labels{part}"
