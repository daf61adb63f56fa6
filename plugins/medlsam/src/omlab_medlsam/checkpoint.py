"""Published files into the networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omlab.errors import WeightsError
from omlab_medlsam.network import MedLam
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint
from omlab_sdk.networks.sam.network import SIZES, Sam

if TYPE_CHECKING:
    from torch import Tensor

#: Of a data-parallel wrapper, which medlam.pth was saved from.
PREFIX = "module."
#: Where upstream's training script keeps the network.
TRAINED = "state_dict"


def read_medlam(path: Path) -> dict[str, Tensor]:
    """The state dict of ``medlam.pth``, or of a checkpoint of upstream's training script, without ``module.``, float32.

    Raises
    ------
    WeightsError
        The file is missing or damaged, or is another's.
    """
    key = TRAINED if TRAINED in entries_of(path) else ""
    state = read_checkpoint(path, key=key, prefix=PREFIX)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load_medlam(path: Path, *, patch: int = 64, base_chns: int = 24, n_classes: int = 3) -> MedLam:
    """The localiser with a file's weights, in eval mode. Raises :class:`omlab.errors.WeightsError` if they do not
    fit."""
    medlam = MedLam(patch_size=(patch,) * 3, base_chns=base_chns, n_classes=n_classes)
    load_into(medlam, read_medlam(path), name=str(path))
    return medlam.eval()


def load_sam(path: Path, *, size: str = "vit_b", side: int = 1024) -> Sam:
    """MedSAM or SAM with a file's weights, in eval mode; files are bare state dicts.

    Raises
    ------
    WeightsError
        They do not fit; a file for another side of the frame is told so.
    """
    state: Mapping[str, Tensor] = read_checkpoint(path)
    sam = Sam(img_size=side, **SIZES[size])
    positions = state.get("image_encoder.pos_embed")
    if positions is not None and positions.ndim == 4 and positions.shape[1] != sam.image_encoder.grid:
        raise WeightsError(
            f"{path}: is of a network for frames of {16 * positions.shape[1]} pixels, this one takes {side}",
            remedy="Take medsam_vit_b.pth or sam_vit_b_01ec64.pth",
        )
    load_into(sam, state, name=str(path))
    return sam.eval()
