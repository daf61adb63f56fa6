"""Published files into the network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_sam_med2d.network import Sam
from omlab_sdk.checkpoints import load_into, read_checkpoint
from omlab_sdk.modules import read_beside_objects

if TYPE_CHECKING:
    from torch import Tensor

#: What the adapters are called; the file with them is also published as "without adapter" by leaving them out.
ADAPTERS = r"image_encoder\.blocks\.\d+\.Adapter\..*"
#: Heads that upstream leaves at their random start when a file of another size is loaded.
HEADS = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
POSITIONS = "image_encoder.pos_embed"
#: Of a file that is a bare state dict, and not a training script's container.
MARK = "image_encoder.patch_embed.proj.weight"


def read(path: Path, key: str = "model") -> dict[str, Tensor]:
    """The state dict, under ``key`` or bare.

    A checkpoint of upstream's training script holds its optimiser as a pickled object, too, which is not made.

    Raises
    ------
    WeightsError
        The file is missing or damaged, or of something else.
    """
    try:
        return read_checkpoint(path, key=key)
    except WeightsError as error:
        if "cannot be read safely" in error.message:
            return read_beside_objects(path, key)
        if "has no entry" not in error.message:
            raise
        with suppress(WeightsError):  # of the two errors the first one tells more
            bare = read_checkpoint(path)
            if MARK in bare:
                return bare
        raise


def load(path: Path, asset: Asset, *, size: str = "vit_b", img_size: int = 256, adapter: bool = True) -> Sam:
    """The network with a file's weights, in eval mode.

    Raises
    ------
    WeightsError
        The file does not fit; one that was made for another side of the frame is told so.
    """
    state = read(path, asset.key or "model")
    sam = Sam.of_size(size, img_size=img_size, adapter=adapter)
    grid = sam.image_encoder.grid
    found = state.get(POSITIONS)
    if found is not None and found.ndim == 4 and found.shape[1] != grid:
        raise WeightsError(
            f"{path}: is of a network for frames of {16 * found.shape[1]} pixels, this variant takes {img_size}",
            remedy="Choose the variant for that size; omlab_sam_med2d.checkpoint.start begins a fine-tuning from it",
        )
    load_into(sam, state, name=str(path), ignore=() if adapter else (ADAPTERS,))
    return sam.eval()


def start(sam: Sam, state: Mapping[str, Tensor], name: str = "checkpoint") -> Sam:
    """Fill ``sam`` from a file of Segment Anything, to fine-tune from, in place.

    Adapters keep their random start. For a frame of another size position tables are resampled, and, as upstream does
    it, so do the heads of :data:`HEADS`: the network then answers nothing sensible before it is trained.

    Raises
    ------
    WeightsError
        The file is of another network.
    """
    own = sam.state_dict()
    moved = POSITIONS in state and POSITIONS in own and state[POSITIONS].shape != own[POSITIONS].shape
    heads = HEADS if moved else ()
    shared = {key: value for key, value in state.items() if key in own and not any(head in key for head in heads)}
    load_into(sam, resized(shared, own), name=name, allow_missing=(*(rf".*{head}.*" for head in heads), ADAPTERS))
    return sam


def resized(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with its position tables resampled, bilinearly, to the shapes of ``own``."""
    from torch.nn import functional as F

    moved = dict(state)
    for name, tensor in state.items():
        if name not in own or tensor.shape == own[name].shape:
            continue
        shape = own[name].shape
        if name == POSITIONS:
            grid = tensor.permute(0, 3, 1, 2)
            moved[name] = F.interpolate(grid, size=tuple(shape[1:3]), mode="bilinear").permute(0, 2, 3, 1)
        elif "rel_pos" in name:
            moved[name] = F.interpolate(tensor[None, None], size=tuple(shape), mode="bilinear")[0, 0]
    return moved
