"""The scans of a configuration of upstream as a dataset: supports are templates, queries are the test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import attrs
import numpy as np

from omlab.cases import read
from omlab.dataset import Dataset, Item
from omlab.datasets.folders import label_map, needed
from omlab.errors import InputError, UsageError
from omlab.files import case_stem
from omlab.results import Label, Segmentation
from omlab.results.colours import colour_of
from omlab.vocabulary import InputKind
from omlab_medlsam import configuration
from omlab_medlsam.configuration import Configuration

#: Organs in the order of upstream's tables, whose configurations number them from 1.
NAMES: Mapping[str, tuple[str, ...]] = {
    "structseg": (
        "brain stem", "eye left", "eye right", "lens left", "lens right", "optic nerve left", "optic nerve right",
        "chiasma", "temporal lobe left", "temporal lobe right", "pituitary", "parotid left", "parotid right",
        "inner ear left", "inner ear right", "middle ear left", "middle ear right", "TM joint left", "TM joint right",
        "spinal cord", "mandible left", "mandible right",
    ),
    "word": (
        "liver", "spleen", "kidney left", "kidney right", "stomach", "gallbladder", "oesophagus", "pancreas",
        "duodenum", "colon", "intestine", "adrenal", "rectum", "bladder", "femur head left", "femur head right",
    ),
}  # fmt: skip


class ConfiguredScans(Dataset):
    """``medlsam-config``: the split ``train`` are the supports, ``test`` the queries."""

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Scans in the order of the lists, with the organs of ``fg_class``; queries may have no label maps.

        Raises
        ------
        omlab.errors.InputError
            The configuration or a list cannot be read, or lists differ in length.
        omlab.errors.UsageError
            The configuration is not as :func:`omlab_medlsam.configuration.read` takes it.
        """
        root = needed(root, self.card.name)
        config = self._read(root)
        structures = self._structures(config)
        for name, (scans, maps) in (("train", config.supports), ("test", config.queries)):
            if split in (None, name):
                yield from _listed(root, name, scans, maps, structures)

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Names of the organs, in the order of ``fg_class``."""
        return tuple(label.name for label in self._structures(self._read(needed(root, self.card.name))))

    def _read(self, root: Path) -> Configuration:
        file = self.options["file"]
        if not file:
            raise UsageError(
                f"dataset '{self.card.name}' needs a configuration",
                remedy=f"Name it within the folder: {self.card.name},file=config.txt:FOLDER",
            )
        return configuration.read(root / file)

    def _structures(self, config: Configuration) -> tuple[Label, ...]:
        known = dict(enumerate(NAMES.get(self.options["names"], ()), 1))
        return tuple(
            Label(value=value, name=known.get(value, f"class {value}"), colour=colour_of(value))
            for value in config.classes
        )


def _listed(
    root: Path, split: str, scans: str, maps: str | None, structures: tuple[Label, ...]
) -> Iterator[Item]:  # fmt: skip
    images = configuration.paths(root, scans)
    labels: list[Path] | list[None] = configuration.paths(root, maps) if maps else [None] * len(images)
    if len(images) != len(labels):
        raise InputError(f"{root / scans} lists {len(images)} scans, {root / str(maps)} {len(labels)} label maps")
    for name, image, label in zip(_named(images), images, labels, strict=True):
        yield Item(
            name=f"{split}-{name}", split=split, files=(image,) if label is None else (image, label),
            read=partial(read, image, kind=(InputKind.VOLUME,)),
            reference=None if label is None else partial(_organs, label, structures),
        )  # fmt: skip


def _named(images: list[Path]) -> list[str]:
    """Names of files; where several are called alike, as in StructSeg, with their folders', then with numbers."""
    names = [case_stem(image.name) for image in images]
    often = Counter(names)
    names = [f"{i.parent.name}-{n}" if often[n] > 1 else n for n, i in zip(names, images, strict=True)]
    often = Counter(names)
    return [f"{n}-{place}" if often[n] > 1 else n for place, n in enumerate(names, 1)]


def _organs(path: Path, structures: tuple[Label, ...]) -> Segmentation:
    """The label map with these organs alone."""
    found = label_map(path)
    wanted = np.isin(found.labels, [label.value for label in structures])
    labels = np.where(wanted, found.labels, 0).astype(found.labels.dtype)
    return attrs.evolve(found, labels=labels, structures=structures)
