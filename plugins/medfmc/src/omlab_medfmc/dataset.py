"""The five sets as datasets: images with upstream's lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import DatasetCard
from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import needed, one_class, some_classes
from omlab.errors import InputError, UsageError
from omlab.vocabulary import InputKind
from omlab_medfmc.fewshot import SHOTS, study_of
from omlab_medfmc.lists import find_list, read_part, shots_of
from omlab_medfmc.sets import SETS, Set

#: Endings that are tried for an image whose list leaves it out, in upstream's order.
ENDINGS = ("", ".jpg", ".png")
EXPERIMENTS = range(1, 6)
#: Image -> its labels, ``None`` where they are not published.
Part = dict[str, NDArray[np.int64] | None]


class MedFmcSet(Dataset):
    """The dataset ``medfmc-SET``: a folder with upstream's list files and the images, in ``images`` or beside them.

    ``train`` and ``val`` are upstream's ``train_20`` and ``val_20``, or all of ``trainval`` is ``train`` where those
    lists are not there; with the option ``shots`` they are the released few-shot lists of an ``experiment``. ``test``
    is ``test_WithLabel``, ``challenge`` the validation set of the challenge.
    """

    published_splits = True

    def __init__(self, card: DatasetCard) -> None:
        super().__init__(card)
        self.which: Set = SETS[card.name.removeprefix("medfmc-")]

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Images in the order of the lists; one that a few-shot list repeats is called ``NAME#2`` the second time.

        Raises
        ------
        omlab.errors.InputError
            A list is missing or damaged.
        """
        root = needed(root, self.card.name)
        for name, (order, labels) in self._parts(root, split).items():
            times: Counter[str] = Counter()
            for image in order:
                times[image] += 1
                path = place(root, image)
                study = study_of(self.which.name, self._whole_name(image))
                yield Item(
                    name=image if times[image] == 1 else f"{image}#{times[image]}", split=name, files=(path,),
                    read=partial(read, path, kind=(InputKind.IMAGE,)), reference=self._truth(labels[image]),
                    group=study if study != self._whole_name(image) else "",
                )  # fmt: skip

    def size(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> int | None:
        """Lines of the lists."""
        return sum(len(order) for order, _ in self._parts(needed(root, self.card.name), split).values())

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """In the order of upstream's columns."""
        return self.which.classes

    def published(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, int]:
        """As the lists in use have it: of few-shot lists only the parts that they leave alone."""
        counts = dict(self.card.counts)
        root = needed(root, self.card.name)
        if self.options["shots"]:
            return {split: n for split, n in counts.items() if split not in ("train", "val")}
        if "val" in counts and find_list(root, self.which, "val") is None:
            counts["train"] += counts.pop("val")
        return counts

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Images that are in two of upstream's big parts."""
        root = needed(root, self.card.name)
        owners: dict[str, str] = {}
        for part in ("trainval", "test", "challenge"):
            path = find_list(root, self.which, part)
            if path is None:
                if part != "challenge":
                    yield Problem(kind="missing", where=f"{self.which.name}: list {part}", what="is not there")
                continue
            for image in read_part(path, self.which):
                before = owners.setdefault(image, part)
                if before != part:
                    yield Problem(kind="leak", where=image, what=f"is in the lists {before} and {part}")

    def _parts(self, root: Path, split: str | None) -> dict[str, tuple[list[str], Part]]:
        """Split -> images in order, and their labels."""
        shots, experiment = self.options["shots"], self.options["experiment"]
        if shots and (shots not in SHOTS or experiment not in EXPERIMENTS):
            raise UsageError(
                f"there are no lists of {shots} shots, experiment {experiment}",
                remedy="Shots are 1, 5 or 10; experiments are 1 to 5",
            )
        found: dict[str, tuple[list[str], Part]] = {}
        if split in (None, "train", "val"):
            found |= self._few(root, shots, experiment) if shots else self._many(root)
        for name in ("test", "challenge"):
            if split in (None, name):
                path = find_list(root, self.which, name)
                if path is not None:
                    labels = read_part(path, self.which)
                    found[name] = (list(labels), labels)
                elif split == name:
                    raise InputError(f"{root}: has no list of the split {name} of {self.which.name}")
        return {name: part for name, part in found.items() if split in (None, name)}

    def _many(self, root: Path) -> dict[str, tuple[list[str], Part]]:
        lists = {name: find_list(root, self.which, name) for name in ("train", "val", "trainval")}
        if lists["train"] is not None and lists["val"] is not None:
            parts = {name: read_part(lists[name], self.which) for name in ("train", "val")}  # type: ignore[arg-type]
        else:
            parts = {"train": self._trainval(root)}
        return {name: (list(labels), labels) for name, labels in parts.items()}

    def _few(self, root: Path, shots: int, experiment: int) -> dict[str, tuple[list[str], Part]]:
        labels = self._trainval(root)
        known = {image: values for image, values in labels.items() if values is not None}
        lists = shots_of(root, self.which, known, shots, experiment)
        if self.options["overlap"] == "drop":
            train = set(lists["train"])
            lists["val"] = [image for image in lists["val"] if image not in train]
        return {name: (order, labels) for name, order in lists.items()}

    def _trainval(self, root: Path) -> Part:
        path = find_list(root, self.which, "trainval")
        if path is None:
            raise InputError(
                f"{root}: has no list {self.which.name}_trainval.txt",
                remedy=f"omlab dataset fetch {self.card.name} tells where the lists are from",
            )
        return read_part(path, self.which)

    def _truth(self, values: NDArray[np.int64] | None) -> Any:
        if values is None:
            return None
        if self.which.multi_label:
            return partial(some_classes, self.which.classes, np.maximum(values, 0))
        return partial(one_class, self.which.classes, int(values[0]))

    def _whole_name(self, image: str) -> str:
        """The name with its ending: studies of colon are cut from the right, and some lists leave it out."""
        return image if image.endswith((".png", ".jpg")) or self.which.name != "colon" else f"{image}.png"


def place(root: Path, image: str) -> Path:
    """Where an image is; where it should be if it is nowhere."""
    for folder in (root / "images", root):
        for ending in ENDINGS:
            path = folder / f"{image}{ending}"
            if path.is_file():
                return path
    return root / "images" / (image if Path(image).suffix in (".png", ".jpg") else f"{image}.png")
