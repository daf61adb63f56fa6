"""Upstream's files into the network: the published flat files, training checkpoints, its converter's files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_pathoduet.network import PREFIX, VisionTransformer
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

#: Of every encoder that upstream's factories make, whatever its width; the file does not tell it.
HEADS = 12
#: Where upstream's scripts put the state dict; a published file holds it bare.
CONTAINERS = ("state_dict", "model")
#: The encoder's prefixes in training checkpoints, the longest first.
PREFIXES = ("module.base_encoder.", "base_encoder.", "module.")
#: What pre-training leaves in a file and an encoder has no use for.
LEFT_OVER = ("momentum_encoder.", "predictor.", "positioner.")


def read(path: Path, asset: Asset | None = None) -> dict[str, Tensor]:
    """The encoder's state dict, out of whichever container and under whichever prefix it is.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing, damaged, or holds no encoder of PathoDuet.
    """
    key = asset.key if asset else ""
    if not key:
        top = entries_of(path)
        key = next((name for name in CONTAINERS if name in top and not hasattr(top[name], "dtype")), "")
    state = read_checkpoint(path, key=key, prefix=asset.prefix if asset else "")
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in state):
            other = tuple(f"{wrap}{name}" for wrap in ("", "module.") for name in LEFT_OVER)
            state = {n.removeprefix(prefix): t for n, t in state.items() if not n.startswith(other)}
            break
    if "pretext_token" not in state:
        first = next(iter(state), "nothing")
        raise WeightsError(
            f"{path}: is no encoder of PathoDuet, it has no 'pretext_token', its first entry is '{first}'",
            remedy="Is it the file of another model?",
        )
    return state


def shape_of(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Constructor arguments that the file's entries tell: width, depth, stem, pooling, image size.

    Raises
    ------
    omlab.errors.WeightsError
        An entry that tells them is missing or has another number of axes.
    """
    blocks = {int(found.group(1)) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or not blocks:
        lacking = "blocks" if not blocks else "pos_embed"
        raise WeightsError(f"{path}: '{lacking}' is missing or malformed", remedy="Fetch it again")
    stem = "patch" if "patch_embed.proj.weight" in state else "conv"
    patch = int(state["patch_embed.proj.weight"].shape[-1]) if stem == "patch" else 16
    return {
        "embed_dim": table.shape[2], "depth": max(blocks) + 1, "num_heads": HEADS, "stem": stem, "patch_size": patch,
        "img_size": round((table.shape[1] - PREFIX) ** 0.5) * patch,
        "global_pool": "avg" if "fc_norm.weight" in state else "token",
    }  # fmt: skip


def encoder(path: Path, asset: Asset | None = None) -> VisionTransformer:
    """A pre-trained encoder without its head, in eval mode."""
    state = read(path, asset)
    network = VisionTransformer(num_classes=0, **shape_of(state, path))
    load_into(network, state, name=str(path), ignore=(r"head\..*",))
    return network.eval()


def classifier(path: Path, asset: Asset | None = None) -> VisionTransformer:
    """A fine-tuned or linearly probed classifier, in eval mode; its classes are those of the file.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no classifier (a pre-trained file has no head, or a projector in its place).
    """
    state = read(path, asset)
    if "head.weight" not in state:
        raise WeightsError(
            f"{path}: holds no classifier, 'head.weight' is missing",
            remedy="It may be a pre-trained file: use an embedding variant, say --variant he",
        )
    network = VisionTransformer(num_classes=state["head.weight"].shape[0], **shape_of(state, path))
    load_into(network, state, name=str(path))
    return network.eval()
