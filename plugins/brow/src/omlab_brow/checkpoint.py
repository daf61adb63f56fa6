"""Upstream's files into the network: the published flat file, and training checkpoints of the DINO family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_brow.network import SIZES, VisionTransformer
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

#: Where training scripts of this family put the encoder, the teacher first: it is what is used afterwards.
CONTAINERS = ("teacher", "student", "state_dict", "model")
PREFIXES = ("module.backbone.", "backbone.", "module.")
#: What pre-training leaves beside the encoder.
LEFT_OVER = (r"head\..*", r"(module\.)?head\..*")


def read(path: Path, asset: Asset | None = None) -> dict[str, Tensor]:
    """The encoder's state dict, out of whichever container and under whichever prefix it is.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing, damaged, or holds no encoder.
    """
    key = asset.key if asset else ""
    if not key:
        top = entries_of(path)
        key = next((name for name in CONTAINERS if name in top and not hasattr(top[name], "dtype")), "")
    state = read_checkpoint(path, key=key, prefix=asset.prefix if asset else "")
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return state


def shape_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Constructor arguments that the entries tell: width, depth, heads, patch and image size.

    Raises
    ------
    omlab.errors.WeightsError
        An entry that tells them is missing, or it is no size of upstream's.
    """
    blocks = {int(found.group(1)) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    table, proj = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    if table is None or proj is None or table.ndim != 3 or proj.ndim != 4 or not blocks:
        first = next(iter(state), "nothing")
        raise WeightsError(
            f"{path}: is no encoder of BROW, its first entry is '{first}'", remedy="Is it the file of another model?"
        )
    width, patch = int(table.shape[2]), int(proj.shape[-1])
    size = next((s for s in SIZES.values() if s["embed_dim"] == width), None)
    if size is None:
        known = ", ".join(str(s["embed_dim"]) for s in SIZES.values())
        raise WeightsError(f"{path}: has {width} features, the sizes of BROW have {known}")
    return {
        "embed_dim": width, "depth": max(blocks) + 1, "num_heads": size["num_heads"], "patch_size": patch,
        "img_size": round((int(table.shape[1]) - 1) ** 0.5) * patch, "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }  # fmt: skip


def encoder(path: Path, asset: Asset | None = None) -> VisionTransformer:
    """The encoder of a file, in eval mode. Raises :class:`omlab.errors.WeightsError`."""
    state = read(path, asset)
    network = VisionTransformer(**shape_of(state, path))
    load_into(network, state, name=str(path), ignore=LEFT_OVER)
    return network.eval()
