"""Pictures with a mask file for each structure, and the prompts that upstream's evaluation asks of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.cases import read
from omlab.dataset import Dataset, Item
from omlab.errors import InputError
from omlab.results import Label, Segmentation, read_segmentation
from omlab.results.colours import colour_of
from omlab.vocabulary import InputKind
from omlab_sam_med2d import protocol


class MaskedPictures(Dataset):
    """``PATH/images/NAME.png`` with ``PATH/masks/NAME_CLASS_III.png``; III counts the parts of a class.

    Each class is one structure of the reference, and one object of the prompts with the box of each of its parts.
    Pictures without masks are passed over.
    """

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Pictures in order of their names. Raises :class:`omlab.errors.InputError` for a folder of another layout."""
        if root is None:
            raise InputError(f"{self.card.name} needs a folder", remedy=f"Name it: {self.card.name}:PATH")
        for folder in (root / "images", root / "masks"):
            if not folder.is_dir():
                raise InputError(
                    f"{root}: holds no folder '{folder.name}'", remedy="Expected PATH/images and PATH/masks"
                )
        pictures = {path.stem: path for path in sorted((root / "images").iterdir()) if _visible(path)}
        masks: dict[str, list[Path]] = {stem: [] for stem in pictures}
        for mask in sorted(path for path in (root / "masks").iterdir() if _visible(path)):
            owners = [stem for stem in pictures if mask.stem.startswith(f"{stem}_")]
            if not owners:
                raise InputError(
                    f"{mask}: belongs to no picture", remedy="Masks are named NAME_CLASS_III after pictures"
                )
            masks[max(owners, key=len)].append(mask)
        for stem, own in masks.items():
            if own:
                yield Item(
                    name=pictures[stem].name, split="test", read=partial(read, pictures[stem], kind=(InputKind.IMAGE,)),
                    reference=partial(_reference, stem, own), prompts=partial(_prompts, stem, own),
                )  # fmt: skip


def class_of(stem: str, mask: Path) -> str:
    """``liver`` of ``NAME_liver_000.png``."""
    name, _, number = mask.stem.removeprefix(f"{stem}_").rpartition("_")
    return name if name and number.isdigit() else mask.stem.removeprefix(f"{stem}_")


def _visible(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _read(path: Path) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = read_segmentation(path).labels != 0
    if mask.any():
        return mask
    raise InputError(f"{path}: is empty, a mask was expected")


def _reference(stem: str, masks: list[Path]) -> Segmentation:
    """One value for each class, in the order of the files; where masks overlap the later one counts."""
    values = {name: value for value, name in enumerate(dict.fromkeys(class_of(stem, mask) for mask in masks), 1)}
    labels: NDArray[np.uint8] | None = None
    for path in masks:
        mask = _read(path)
        if labels is None:
            labels = np.zeros(mask.shape, np.uint8)
        if mask.shape != labels.shape:
            raise InputError(f"{path}: has the shape {mask.shape}, {masks[0].name} has {labels.shape}")
        labels[mask] = values[class_of(stem, path)]
    assert labels is not None
    structures = [Label(value=value, name=name, colour=colour_of(value)) for name, value in values.items()]
    return Segmentation(labels=labels, structures=structures)


def _prompts(stem: str, masks: list[Path]) -> list[dict[str, Any]]:
    """The box of each mask, in the order of the reference."""
    objects: dict[str, dict[str, Any]] = {}
    for path in masks:
        name = class_of(stem, path)
        item = objects.setdefault(name, {"label": name, "boxes": []})
        item["boxes"].append([float(v) for v in protocol.box_of(_read(path))])
    return list(objects.values())
