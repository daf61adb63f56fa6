"""Tiles and masks of nuclei, from the archives of Zenodo or unpacked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from omlab.cases import Image, Source
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import needed
from omlab.errors import InputError
from omlab.results import Label, Segmentation
from omlab_snow.pools import Entry, by_stem, entries, numbered, partner, stream

IMAGES, MASKS = "SNOW_Image", ("mask_0_5000", "mask_5001_10k", "mask_10k_15k", "mask_15k_20k")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
#: Arrays of a mask file that are taken, the first that is there; else the only one of two dimensions.
_ARRAYS = ("inst_map", "mask", "label", "seg", "type_map")
#: Share of tiles of each split by protocol; the rest is unlabelled.
PROTOCOLS = {"supervised": {"train": 0.95, "val": 0.05}, "semi": {"train": 0.45, "val": 0.05}}
Tile = tuple[str, Entry, Entry | None]


class Snow(Dataset):
    """``SNOW_Image`` and the four ``mask_*``, as zip archives or unpacked; nuclei against background.

    There is no official split: the tiles, in order of their names, are shuffled with the option ``seed`` and cut by the
    protocol of the paper, 95 % and 5 %, or 45 %, 5 % and 50 % without references.
    """

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Tiles in order of split, each in order of name."""
        structures = tuple(map(Label.of, self.card.labels))
        tiles = self._tiles(files, root)
        for name, numbers in self._cut(len(tiles)).items():
            if split not in (None, name):
                continue
            for number in numbers:
                stem, image, mask = tiles[number]
                shown = mask if name != "unlabelled" else None
                yield Item(
                    name=stem, split=name, read=partial(read_tile, image),
                    files=(image.holder,) if shown is None else (image.holder, shown.holder),
                    reference=partial(read_reference, shown, structures) if shown else None,
                )  # fmt: skip

    def size(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> int | None:
        """Tiles that there are."""
        parts = self._cut(len(self._tiles(files, root)))
        return sum(len(numbers) for name, numbers in parts.items() if split in (None, name))

    def published(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, int]:
        """By the protocol in force."""
        return {name: len(numbers) for name, numbers in self._cut(sum(self.card.counts.values())).items()}

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Archives that are damaged, tiles without a mask, masks without a tile."""
        images = by_stem(entries(_places(files, root, (IMAGES,)), _PICTURES))
        masks = by_stem(entries(_places(files, root, MASKS), (".mat",)))
        numbers = numbered(masks)
        used = set()
        for stem in images:
            found = partner(stem, masks, numbers)
            if found is None:
                yield Problem(kind="reference", where=stem, what="has no mask (.mat)")
            else:
                used.add(found)
        for stem, entry in masks.items():
            if entry not in used:
                yield Problem(kind="extra", where=f"{entry.holder.name}/{stem}.mat", what="belongs to no tile")

    def _tiles(self, files: Mapping[str, Path], root: Path | None) -> list[Tile]:
        images = by_stem(entries(_places(files, root, (IMAGES,)), _PICTURES))
        masks = by_stem(entries(_places(files, root, MASKS), (".mat",)))
        numbers = numbered(masks)
        return [(stem, images[stem], partner(stem, masks, numbers)) for stem in sorted(images)]

    def _cut(self, count: int) -> dict[str, list[int]]:
        order = list(range(count))
        random.Random(self.options["seed"]).shuffle(order)
        parts: dict[str, list[int]] = {}
        start = 0
        shares = PROTOCOLS[self.options["protocol"]]
        for name, share in shares.items():
            stop = start + round(share * count)
            parts[name] = sorted(order[start:stop])
            start = stop
        if self.options["protocol"] == "semi":
            parts["unlabelled"] = sorted(order[start:])
        return parts


def _places(files: Mapping[str, Path], root: Path | None, names: tuple[str, ...]) -> list[Path]:
    """Folders or archives of these names; a folder goes before the archive that it came from."""
    if root is None:
        return [path for path in files.values() if path.stem in names]
    root = needed(root, "snow")
    found = []
    for name in names:
        place = next((p for p in (root / name, root / f"{name}.zip") if p.exists()), None)
        if place is not None:
            found.append(place)
    if not found:
        raise InputError(
            f"{root}: holds none of {', '.join(names)}, as a folder or a zip archive",
            remedy="omlab dataset fetch snow, or name the folder of the downloaded files",
        )
    return found


def read_tile(entry: Entry) -> Image:
    """A tile, [row, column, RGB]. Raises :class:`omlab.errors.InputError`."""
    try:
        with Pillow.open(stream(entry), formats=("PNG", "JPEG", "TIFF")) as picture:
            pixels = np.asarray(picture.convert("RGB"))
            kind = (picture.format or "png").lower()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(f"{entry.name}: is damaged: {error}") from None
    source = Source(path=entry.holder, format=kind, files=(entry.holder,), details={"member": entry.member})
    return Image(name=entry.name, pixels=pixels, source=source)


def read_reference(entry: Entry, structures: tuple[Label, ...]) -> Segmentation:
    """Nuclei of a MATLAB file: every value but 0. Raises :class:`omlab.errors.InputError`."""
    labels = (read_mat(entry) != 0).astype(np.uint8)
    return Segmentation(labels=labels, structures=structures[:1])


def read_mat(entry: Entry) -> NDArray[np.generic]:
    """The map of nuclei of a MATLAB file, [row, column]; with instances, a number for each nucleus.

    Raises
    ------
    omlab.errors.InputError
        The file is damaged, or has not exactly one array that can be the map.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(stream(entry), variable_names=None)
    except (MatReadError, NotImplementedError, ValueError, TypeError, OSError, IndexError) as error:
        raise InputError(f"{entry.name}: is no MATLAB file that can be read: {error}") from None
    arrays = {
        name: value for name, value in found.items()
        if not name.startswith("__") and isinstance(value, np.ndarray) and value.dtype.kind in "uifb"
        and value.ndim == 2 and min(value.shape) > 2
    }  # fmt: skip
    for name in _ARRAYS:
        if name in arrays:
            return arrays[name]
    if len(arrays) != 1:
        shown = ", ".join(sorted(arrays)) or "none"
        raise InputError(f"{entry.name}: has {len(arrays)} arrays that can be the mask ({shown}), one was expected")
    return next(iter(arrays.values()))
