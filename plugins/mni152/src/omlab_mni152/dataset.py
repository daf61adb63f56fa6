"""One template, two references.

The template is already masked: outside of the brain it is exactly 0, so its non-zero voxels are its brain mask
(1886.5 ml). The tissue maps are probabilities in 0..255; a voxel belongs to the likelier of grey and white matter where
that one's probability is at least one half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from omlab.cases import Volume, read
from omlab.dataset import Dataset, Item
from omlab.results import Label, Segmentation
from omlab.vocabulary import InputKind

_READ = partial(read, kind=(InputKind.VOLUME,))
GREY, WHITE = 1, 2


class Template(Dataset):
    """The datasets ``mni152`` and ``mni152-tissue``: one case, its grid 197 x 233 x 189 at 1 mm, RAS+."""

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """The single case, in split ``test``."""
        if split in (None, "test"):
            tissue = "grey" in files
            truth = partial(self._tissue, files) if tissue else partial(self._brain, files)
            yield Item(name="mni152_t1", split="test", read=partial(_READ, files["t1"]), reference=truth)

    def _structures(self) -> tuple[Label, ...]:
        return tuple(Label.of(card) for card in self.card.labels)

    def _brain(self, files: Mapping[str, Path]) -> Segmentation:
        template = _volume(files["t1"])
        labels = (template.voxels > 0).astype(np.uint8)
        return Segmentation(labels=labels, structures=self._structures(), geometry=template.geometry)

    def _tissue(self, files: Mapping[str, Path]) -> Segmentation:
        grey, white = _volume(files["grey"]), _volume(files["white"])
        labels = np.zeros(grey.voxels.shape, np.uint8)
        half = 128  # of 255
        labels[(grey.voxels >= half) & (grey.voxels >= white.voxels)] = GREY
        labels[(white.voxels >= half) & (white.voxels > grey.voxels)] = WHITE
        return Segmentation(labels=labels, structures=self._structures(), geometry=grey.geometry)


def _volume(path: Path) -> Volume:
    case = _READ(path)
    assert isinstance(case, Volume)  # _READ asks for a volume
    return case
