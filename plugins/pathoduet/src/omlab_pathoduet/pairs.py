"""What stages 2 and 3 learn from: pairs of pictures in folders, and batches of their views.

Stage 2 takes the patches and regions of :mod:`omlab_pathoduet.cutting`, whose names say what belongs together. Stage 3
takes BCI and HyReCo as they are published: an H&E tile and the tile of the same place in another stain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from omlab.errors import InputError
from omlab_pathoduet.cutting import PATCH, REGION
from omlab_pathoduet.views import Tile, View, Views

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[Path, Path]
HE, IHC = "HE", "IHC"
#: ``_J.png`` at the end of a patch's name.
_TAIL = 6


def region_of(patch: Path) -> Path:
    """The region's file of a patch: ``patch/S_3_7.png`` to ``region/S_3.png``."""
    return patch.parent.with_name(REGION) / f"{patch.name[:-_TAIL]}.png"


def bridge(folder: str | Path) -> list[Pair]:
    """(patch, region) of every patch in a folder that was cut, by name.

    Raises
    ------
    omlab.errors.InputError
        There are no patches, or one has no region.
    """
    patches = sorted((Path(folder) / PATCH).glob("*.png"))
    if not patches:
        raise InputError(f"{folder}: has no patches in '{PATCH}'", remedy="Cut slides: omlab pathoduet cut")
    found = [(patch, region_of(patch)) for patch in patches]
    lacking = [patch.name for patch, region in found if not region.is_file()]
    if lacking:
        raise InputError(
            f"{folder}: {len(lacking)} of {len(found)} patches have no region, first {lacking[0]}",
            remedy="Cut its slide again",
        )
    return found


def bci(folder: str | Path, split: str = "train") -> list[Pair]:
    """(H&E, IHC) of BCI: ``HE/train`` and ``IHC/train`` with the same names.

    Raises
    ------
    omlab.errors.InputError
        A folder is missing or empty, or a tile is lacking in one of them.
    """
    he, ihc = (Path(folder) / stain / split for stain in (HE, IHC))
    names = _names(he)
    _same(names, _names(ihc), he, ihc)
    return [(he / name, ihc / name) for name in sorted(names)]


def hyreco(folder: str | Path) -> list[Pair]:
    """(H&E, other stain) of HyReCo: ``STAIN/SLIDE/SLIDE_*.png``, every other stain with H&E.

    Raises
    ------
    omlab.errors.InputError
        There is no H&E or no other stain, or a tile of another stain has no H&E tile.
    """
    root = Path(folder)
    stains = sorted(p for p in root.iterdir() if p.is_dir() and p.name != HE) if root.is_dir() else []
    if not stains or not (root / HE).is_dir():
        raise InputError(f"{folder}: has no folder '{HE}' beside those of other stains")
    found = []
    for stain in stains:
        for tile in sorted(stain.glob("*/*.png")):
            if not tile.name.startswith(f"{tile.parent.name}_"):
                continue
            he = root / HE / tile.parent.name / tile.name
            if not he.is_file():
                raise InputError(f"{tile}: there is no {HE} tile {he}")
            found.append((he, tile))
    if not found:
        raise InputError(f"{folder}: has no tiles, expected STAIN/SLIDE/SLIDE_*.png")
    return found


def _names(folder: Path) -> set[str]:
    found = {p.name for p in folder.glob("*.png")}
    if not found:
        raise InputError(f"{folder}: is missing or has no PNG files")
    return found


def _same(one: set[str], other: set[str], first: Path, second: Path) -> None:
    for lacking, where in ((one - other, second), (other - one, first)):
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise InputError(f"{where}: lacks {min(lacking)}{more}")


class ViewBatches:
    """Batches of views of pairs, for :func:`omlab_sdk.training.fit` or any other loop; they are
    :class:`omlab_sdk.training.Batches`. Every view follows from seed, epoch and place.

    Parameters
    ----------
    pairs : of files; the same one twice for stage 1.
    draw : gives the views of a pair's pictures, one of :data:`STAGES`.
    size : pairs of a batch, at least 2, as a norm over a batch takes; what is left over in an epoch is not seen.
    side, stain_blur : of :class:`omlab_pathoduet.views.Views`.

    Raises
    ------
    omlab.errors.InputError
        There are fewer pairs than a batch has.
    """

    def __init__(
        self, pairs: Sequence[Pair], draw: Callable[[Views, Tile, Tile], tuple[View, ...]], size: int, *, seed: int = 0,
        side: int = 224, stain_blur: float = 0.1,
    ) -> None:  # fmt: skip
        if size < 2 or len(pairs) < size:
            raise InputError(f"batches of {size} were asked for, at least 2 and at most {len(pairs)} are possible")
        self.pairs, self.draw, self.size, self.seed = tuple(pairs), draw, size, seed
        self.side, self.stain_blur = side, stain_blur

    def __len__(self) -> int:
        return len(self.pairs) // self.size

    def batch(self, epoch: int, index: int) -> tuple[Tensor, ...]:
        """Each view of the pairs, float32 [pair, 3, row, column], in the order in which the network takes them.

        Raises
        ------
        omlab.errors.InputError
            A picture is damaged.
        """
        import torch

        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
        rows = []
        for number in order[index * self.size : (index + 1) * self.size]:
            drawn = Views([self.seed, epoch, int(number)], size=self.side, stain_blur=self.stain_blur)
            rows.append(self.draw(drawn, *(read(path) for path in self.pairs[number])))
        return tuple(torch.from_numpy(np.stack(views)) for views in zip(*rows, strict=True))


#: Number of a stage -> what draws the views of a pair for it.
STAGES: dict[int, Callable[[Views, Tile, Tile], tuple[View, ...]]] = {
    1: lambda views, patch, _: views.contrast(patch), 2: Views.bridge, 3: Views.cross,
}  # fmt: skip


def read(path: Path) -> Tile:
    """[row, column, RGB] of a picture. Raises :class:`omlab.errors.InputError`."""
    try:
        with Pillow.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: is missing or damaged: {error}") from None
