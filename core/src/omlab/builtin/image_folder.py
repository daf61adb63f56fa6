"""A folder of images in class folders, the layout that fine-tuning scripts of this field share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from omlab.cases import read
from omlab.dataset import Dataset, Item
from omlab.datasets.folders import file_names, folder_names, needed, one_class
from omlab.errors import InputError
from omlab.vocabulary import InputKind

SPLITS = ("train", "val", "test")


class ImageFolder(Dataset):
    """``root/{train,val,test}/CLASS/image``, or ``root/CLASS/image`` where there are no splits (all is ``train``).

    Classes are the sorted folder names over all splits, so that an index means the same class in each.
    """

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Class folders, sorted."""
        found = {name for folder in self._splits(root).values() for name in folder_names(folder)}
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
            for index, class_name in enumerate(classes):
                if not (folder / class_name).is_dir():
                    continue
                for image in file_names(folder / class_name):
                    path = folder / class_name / image
                    yield Item(
                        name=f"{name}/{class_name}/{image}", split=name, files=(path,),
                        read=partial(read, path, kind=(InputKind.IMAGE,)),
                        reference=partial(one_class, classes, index),
                    )  # fmt: skip

    def size(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> int | None:
        """Files of the class folders, counted without making a case of each."""
        return sum(
            len(file_names(folder / class_name))
            for name, folder in self._splits(root).items()
            if split in (None, name)
            for class_name in folder_names(folder)
        )

    def _splits(self, root: Path | None) -> dict[str, Path]:
        root = needed(root, self.card.name)
        found = {name: root / name for name in SPLITS if (root / name).is_dir()}
        return found or {"train": root}
