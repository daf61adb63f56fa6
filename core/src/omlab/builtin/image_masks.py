"""Images and label maps of the same name in two folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import SPLIT_WORDS, file_names, folder_names, label_map, needed
from omlab.errors import InputError
from omlab.files import case_stem
from omlab.results import Label
from omlab.results.colours import colour_of
from omlab.vocabulary import InputKind

IMAGES = ("images", "image", "imgs")
MASKS = ("masks", "labels", "annotations", "mask", "label")
#: What a mask may be called beyond its image.
SUFFIXES = ("", "_mask", "_seg", "_segmentation", "_label", "_gt")
NAMES = "classes.json"


class ImageMasks(Dataset):
    """``root/images/NAME.*`` with ``root/masks/NAME.*`` (or ``labels``): pictures, NIfTI or DICOM.

    Splits are folders ``root/train/images`` or ``root/images/train``; all is ``test`` without. ``root/classes.json``
    maps values to names. A mask of 0 and 255 is one structure; images without a mask are cases without a reference.
    """

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """The names of ``classes.json``; none without the file: the label maps are not all opened to find out."""
        return tuple(label.name for label in self._structures(needed(root, self.card.name)))

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Images in order of split and name."""
        root = needed(root, self.card.name)
        structures = self._structures(root)
        for name, images, masks in _pairs(root):
            if split not in (None, name):
                continue
            known = {case_stem(mask): mask for mask in file_names(masks)}
            for image in file_names(images):
                mask = _mask_of(image, known)
                path = images / image
                kinds = (InputKind.IMAGE, InputKind.VOLUME)
                yield Item(
                    name=image if len(_pairs(root)) == 1 else f"{name}/{image}", split=name,
                    files=(path, masks / mask) if mask else (path,), read=partial(read, path, kind=kinds),
                    reference=partial(label_map, masks / mask, structures) if mask else None,
                )  # fmt: skip

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Masks without an image, and images without a mask."""
        for _, images, masks in _pairs(needed(root, self.card.name)):
            known = {case_stem(mask): mask for mask in file_names(masks)}
            used = set()
            for image in file_names(images):
                mask = _mask_of(image, known)
                used.add(mask)
                if mask is None:
                    yield Problem(
                        kind="reference", where=f"{images.name}/{image}", what=f"has no mask in {masks.name}",
                        error=False,
                    )  # fmt: skip
            for mask in known.values():
                if mask not in used:
                    yield Problem(kind="extra", where=f"{masks.name}/{mask}", what=f"belongs to no image of {images}")

    def _structures(self, root: Path) -> tuple[Label, ...]:
        path = root / NAMES
        if not path.is_file():
            return ()
        try:
            table = json.loads(path.read_text("utf-8"))
            pairs = enumerate(table, 1) if isinstance(table, list) else table.items()
            values = sorted((int(value), str(name)) for value, name in pairs)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path}: is no table of values and names: {error}", remedy='Write {"1": "liver"}'
            ) from None
        return tuple(Label(value=value, name=name, colour=colour_of(value)) for value, name in values if value)


def _pairs(root: Path) -> list[tuple[str, Path, Path]]:
    """(split, folder of images, folder of masks) of every split."""
    for split_first in (True, False):
        found = []
        tops = folder_names(root) if split_first else folder_names(_first(root, IMAGES) or root)
        for top in tops:
            if top.lower() not in SPLIT_WORDS:
                continue
            if split_first:
                images, masks = _first(root / top, IMAGES), _first(root / top, MASKS)
            else:
                images, masks = _first(root, IMAGES), _first(root, MASKS)
                images, masks = images and images / top, masks and masks / top
            if images is not None and masks is not None and masks.is_dir():
                found.append((SPLIT_WORDS[top.lower()], images, masks))
        if found:
            return sorted(found, key=lambda row: ("train", "val", "test").index(row[0]))
    images, masks = _first(root, IMAGES), _first(root, MASKS)
    if images is None or masks is None:
        raise InputError(
            f"{root}: holds no folder '{IMAGES[0] if images is None else MASKS[0]}'",
            remedy="Expected PATH/images and PATH/masks (or labels), or both below PATH/train, PATH/val, PATH/test",
        )
    return [("test", images, masks)]


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _mask_of(image: str, known: Mapping[str, str]) -> str | None:
    own = case_stem(image)
    return next((known[own + suffix] for suffix in SUFFIXES if own + suffix in known), None)
