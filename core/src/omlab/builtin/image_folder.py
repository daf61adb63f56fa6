"""A folder of images in class folders, the layout that fine-tuning scripts of this field share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from omlab.cases import read
from omlab.dataset import Dataset, Item
from omlab.errors import InputError
from omlab.results import Classification
from omlab.vocabulary import InputKind

SPLITS = ("train", "val", "test")


class ImageFolder(Dataset):
    """``root/{train,val,test}/CLASS/image``, or ``root/CLASS/image`` where there are no splits (all is ``train``).

    Classes are the sorted folder names over all splits, so that an index means the same class in each.
    """

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Class folders, sorted."""
        found = {folder.name for split in self._splits(root).values() for folder in _folders(split)}
        if not found:
            raise InputError(
                f"{root} holds no class folders",
                remedy="Expected ROOT/CLASS/image or ROOT/{train,val,test}/CLASS/image",
            )
        return tuple(sorted(found))

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Images in order of split, class and name."""
        classes = self.classes(root)
        for name, folder in self._splits(root).items():
            if split not in (None, name):
                continue
            for class_folder in _folders(folder):
                index = classes.index(class_folder.name)
                for path in sorted(p for p in class_folder.iterdir() if p.is_file() and not p.name.startswith(".")):
                    yield Item(
                        name=f"{name}/{class_folder.name}/{path.name}",
                        split=name,
                        read=partial(read, path, kind=(InputKind.IMAGE,)),
                        reference=partial(_truth, classes, index),
                    )

    @staticmethod
    def _splits(root: Path | None) -> dict[str, Path]:
        if root is None:
            raise InputError("image-folder needs a folder", remedy="Name it: image-folder:PATH")
        found = {name: root / name for name in SPLITS if (root / name).is_dir()}
        return found or {"train": root}


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _truth(classes: tuple[str, ...], index: int) -> Classification:
    probabilities = np.zeros(len(classes), np.float32)
    probabilities[index] = 1.0
    return Classification(classes=classes, probabilities=probabilities)
