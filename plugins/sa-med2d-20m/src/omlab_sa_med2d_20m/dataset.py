"""Images with their masks as cases of a promptable model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import needed
from omlab.errors import InputError
from omlab.results import Label, Segmentation, read_segmentation
from omlab.results.colours import colour_of
from omlab.settings import Settings
from omlab.vocabulary import InputKind
from omlab_sa_med2d_20m.index import Index, Wanted, main, open_index
from omlab_sa_med2d_20m.names import parse

MASKS, CLASSES = "SAMed2D_v1.json", "SAMed2D_v1_class_mapping_id.json"
#: Classes of this beginning are unions of others of the same data set.
UNION = "union_"


@attrs.frozen
class One:
    """A mask of an image: its file, class and instance."""

    path: Path
    name: str
    instance: int


class SaMed2D(Dataset):
    """The folder ``SAMed2Dv1``: ``images``, ``masks``, :data:`MASKS` and :data:`CLASSES`.

    A case is an image with a structure for each class, or with the option ``unit=mask`` an image with one mask, which
    is how SAM-Med2D counts. Each object is asked for with the box of its mask.
    """

    tells_extra = False

    _opened: tuple[Path, Index] | None = None
    _named: tuple[Path, dict[str, dict[int, str]]] | None = None

    def index(self, root: Path | None) -> Index:
        """The index of the folder; built the first time."""
        root = needed(root, self.card.name)
        if self._opened is None or self._opened[0] != root:
            cache = Settings.from_environment().home / "indices" / self.card.name
            self._opened = (root, open_index(root / MASKS, cache, listener=self.listener))
        return self._opened[1]

    def class_names(self, root: Path) -> dict[str, dict[int, str]]:
        """Data set -> class -> name. Raises :class:`omlab.errors.InputError`."""
        if self._named is None or self._named[0] != root:
            self._named = (root, read_classes(root / CLASSES))
        return self._named[1]

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Cases in the order of the index."""
        return self.shard(files, 0, 1, split=split, root=root)

    def shard(
        self, files: Mapping[str, Path], index: int, count: int, *, split: str | None = None, root: Path | None = None
    ) -> Iterator[Item]:  # fmt: skip
        """Every ``count``-th of the wanted images; those between are stepped over and never made."""
        root = needed(root, self.card.name)
        if split not in (None, "all"):
            return
        table, names = self.index(root), self.class_names(root)
        passed = 0
        for numbers in table.chosen(self._wanted()):
            for number in numbers[(index - passed) % count :: count].tolist():
                yield from self._cases(root, table, names, number)
            passed += len(numbers)

    def size(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> int | None:
        """Wanted images, or with ``unit=mask`` their masks, by the index; unknown where classes are left out."""
        images, masks = self.index(root).count(self._wanted())
        if self.options["unit"] == "image":
            return images
        return masks if self.options["union"] else None

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Entries of the index that do not follow the rules, images that are there twice, classes without a name."""
        root = needed(root, self.card.name)
        table, names = self.index(root), self.class_names(root)
        for text in table.header["odd"]:
            yield Problem(kind="layout", where=MASKS, what=text)
        hidden = table.header["odd_count"] - len(table.header["odd"])
        if hidden:
            yield Problem(kind="layout", where=MASKS, what=f"{hidden} further entries do not follow the rules")
        if table.header["duplicates"]:
            yield Problem(kind="duplicate", where=MASKS, what=f"{table.header['duplicates']} images are there twice")
        for source in table.header["sources"]:
            if source not in names:
                yield Problem(kind="reference", where=CLASSES, what=f"names no class of the data set {source}")

    def facts(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Images and masks of each modality and data set, counted on the index."""
        table = self.index(root)
        found: dict[str, dict[str, str]] = {"Modalities": {}, "Data sets": {}}
        for title, words in (
            ("Modalities", sorted({main(prefix) for prefix in table.header["prefixes"]})),
            ("Data sets", sorted(table.header["sources"])),
        ):
            for word in words:
                wanted = Wanted(modalities=(word,)) if title == "Modalities" else Wanted(sources=(word,))
                images, masks = table.count(wanted)
                found[title][word] = f"{images:,} images, {masks:,} masks"
        return found

    def _wanted(self) -> Wanted:
        return Wanted(tuple(self.options["modality"]), tuple(self.options["source"]))

    def _cases(self, root: Path, table: Index, names: Mapping[str, Mapping[int, str]], number: int) -> Iterator[Item]:
        stem = table.stem(number)
        name = parse(stem)
        of = names.get(name.source, {})
        image = root / "images" / f"{stem}.png"
        masks = []
        for value, instance in table.objects(number):
            called = of.get(value, f"class {value:04d}")
            if self.options["union"] or not called.startswith(UNION):
                path = root / "masks" / f"{stem}--{value:04d}_{instance:03d}.png"
                masks.append(One(path, called, instance))
        reader = partial(read, image, kind=(InputKind.IMAGE,))
        for own in [masks] if self.options["unit"] == "image" else [[mask] for mask in masks]:
            yield Item(
                name=stem if self.options["unit"] == "image" else own[0].path.stem, split="all", read=reader,
                reference=partial(reference, own) if own else None, prompts=partial(prompts, own) if own else None,
                group=name.group, files=(image, *(mask.path for mask in own)),
            )  # fmt: skip


def read_classes(path: Path) -> dict[str, dict[int, str]]:
    """Data set -> class -> name. Raises :class:`omlab.errors.InputError` for a file that is no such table."""
    try:
        table = json.loads(path.read_text("utf-8"))
        return {source: {int(value): name for name, value in of.items()} for source, of in table.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist", remedy="It lies beside SAMed2D_v1.json") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: is no table of data sets and classes: {error}") from None


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask of 0 and 1, or of 0 and 255. Raises :class:`omlab.errors.InputError` for other values, or none at all."""
    labels = read_segmentation(path).labels
    top = int(labels.max(initial=0))
    if top not in (1, 255) or not np.isin(labels, (0, top)).all():
        what = "is empty" if not top else "has values besides 0 and 1, or 0 and 255"
        raise InputError(f"{path.name}: {what}, a mask was expected")
    found: NDArray[np.bool_] = labels > 0
    return found


def reference(masks: list[One]) -> Segmentation:
    """A value for each class, in the order of the masks; where masks overlap the later one counts.

    Raises
    ------
    omlab.errors.InputError
        A mask is damaged, empty, or of another size than the first.
    """
    values = {name: value for value, name in enumerate(dict.fromkeys(mask.name for mask in masks), 1)}
    labels: NDArray[np.uint16] | None = None
    for mask in masks:
        found = read_mask(mask.path)
        if labels is None:
            labels = np.zeros(found.shape, np.uint16)
        if found.shape != labels.shape:
            raise InputError(f"{mask.path.name}: has the shape {found.shape}, {masks[0].path.name} has {labels.shape}")
        labels[found] = values[mask.name]
    assert labels is not None
    structures = [Label(value=value, name=name, colour=colour_of(value)) for name, value in values.items()]
    return Segmentation(labels=labels.astype(np.uint8) if len(values) < 256 else labels, structures=structures)


def prompts(masks: list[One]) -> list[dict[str, Any]]:
    """The box of each mask, (x0, y0, x1, y1) of the pixels that it holds, gathered by class."""
    objects: dict[str, dict[str, Any]] = {}
    for mask in masks:
        rows, columns = np.nonzero(read_mask(mask.path))
        box = [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        objects.setdefault(mask.name, {"label": mask.name, "boxes": []})["boxes"].append(box)
    return list(objects.values())
