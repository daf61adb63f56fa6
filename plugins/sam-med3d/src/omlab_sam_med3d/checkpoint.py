"""Published files into the network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_sam_med3d.network import Sam3d
from omlab_sdk.checkpoints import load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

KEY = "model_state_dict"
POSITIONS = "image_encoder.pos_embed"
#: Normalisation constants of a class that has no use for them; upstream's files do not hold them, copies may.
IGNORED = (r"pixel_(mean|std)",)


def read(path: Path, key: str = KEY) -> dict[str, Tensor]:
    """The state dict, under ``key`` or bare.

    Raises
    ------
    WeightsError
        The file is missing, damaged or another's.
    """
    try:
        return read_checkpoint(path, key=key)
    except WeightsError as error:
        if "has no entry" not in error.message:
            raise
        with suppress(WeightsError):  # of the two errors the first one tells more
            bare = read_checkpoint(path)
            if POSITIONS in bare:
                return bare
        raise


def load(path: Path, asset: Asset, *, size: str = "vit_b_ori", img_size: int = 128) -> Sam3d:
    """The network with a file's weights, in eval mode. Raises :class:`omlab.errors.WeightsError` if they do not fit."""
    return fitted(Sam3d.of_size(size, img_size=img_size), read(path, asset.key or KEY), str(path)).eval()


def fitted(sam: Sam3d, state: Mapping[str, Tensor], name: str) -> Sam3d:
    """``sam`` with ``state`` in it, to use or to fine-tune from."""
    load_into(sam, state, name=name, ignore=IGNORED)
    return sam
