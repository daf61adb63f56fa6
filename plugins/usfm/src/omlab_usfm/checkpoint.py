"""Upstream's files into the networks: the published flat file by upstream's remapping, and fine-tuned checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint
from omlab_usfm.network import BASE, TRAINED, Trunk, VisionTransformer
from omlab_usfm.segmenter import SegViT, UPerNet, segvit, upernet
from omlab_usfm.tables import EXTRA, resized

if TYPE_CHECKING:
    from torch import Tensor

SHARED = "rel_pos_bias.relative_position_bias_table"
OWN = "attn.relative_position_bias_table"
#: Indices are made again by the constructor; the mask token is of pre-training.
LEFT_OVER = (r".*relative_position_index", "mask_token")
#: What a segmentation network has one of for each class.
BY_CLASS = (
    r"decode_head\.q\.weight", r"decode_head\.class_embed\..*", r"decode_head\.loss_decode\.criterion\.empty_weight",
    r".*_head\.conv_seg\..*",
)  # fmt: skip


def read(path: Path, asset: Asset | None = None) -> dict[str, Tensor]:
    """A file's state dict: bare, as it was published, or at ``model``, as upstream's trainers write it."""
    key = asset.key if asset else ""
    if not key:
        top = entries_of(path)
        key = "model" if "model" in top and not hasattr(top["model"], "dtype") else ""
    state = read_checkpoint(path, key=key, prefix=asset.prefix if asset else "")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def remapped(state: Mapping[str, Tensor], depth: int, grid: int, *, transposed: bool = True) -> dict[str, Tensor]:
    """The published layout for networks whose blocks have tables of their own: the shared table is copied to each, and
    brought to the network's grid.

    Raises
    ------
    omlab.errors.WeightsError
        There is no shared table: the file is not of the published layout.
    """
    import torch

    if SHARED not in state:
        first = next(iter(state), "nothing")
        raise WeightsError(
            f"the weights have no '{SHARED}', their first entry is '{first}'",
            remedy="Only the published file, USFM_latest.pth, is remapped; a fine-tuned one needs a variant of its own",
        )
    table = torch.from_numpy(resized(state[SHARED].float().numpy(), grid, transposed=transposed))
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("rel_pos_bias.")}
    kept = {name: tensor for name, tensor in kept.items() if not name.endswith("relative_position_index")}
    return kept | {f"blocks.{i}.{OWN}": table for i in range(depth)}


def load_published(network: Trunk, state: Mapping[str, Tensor], *, name: str, transposed: bool = True) -> None:
    """The published encoder into a classifier or backbone with tables of its own, as upstream does it.

    What only fine-tuning makes (``fc_norm``, head, ``fpn*``) stays as constructed; the file's ``norm`` is left out
    where the network averages, and its biases and layer scales where the network has none.
    """
    fits = remapped(state, len(network.blocks), network.grid, transposed=transposed)
    made = (r"fc_norm\..*", r"head\..*", r"fpn\d\..*", r".*relative_position_index")
    # Upstream loads without asking for every entry; these are the ones that its configurations leave out.
    load_into(
        network, fits, name=name, allow_missing=made,
        ignore=(r"norm\..*", "mask_token", r"blocks\.\d+\.(gamma_[12]|attn\.[qv]_bias)"),
    )  # fmt: skip


def encoder(path: Path, asset: Asset | None = None, *, mean: bool = True) -> VisionTransformer:
    """The published encoder without a head, in eval mode.

    Parameters
    ----------
    mean : the mean patch token through an ``fc_norm`` that no file holds (ones and zeros), as upstream's fine-tuning
        begins; else the class token through the file's own ``norm``.
    """
    state = read(path, asset)
    network = VisionTransformer(
        num_classes=0, use_mean_pooling=mean, use_rel_pos_bias=True, **TRAINED, **_shape(state, path)
    )
    load_published(network, state, name=str(path))
    return network.eval()


def classifier(path: Path, asset: Asset | None = None) -> VisionTransformer:
    """A fine-tuned classifier of upstream's published configuration, in eval mode; the file tells its classes.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no classifier (the published file has no head).
    """
    state = read(path, asset)
    if "head.weight" not in state:
        raise WeightsError(
            f"{path}: holds no classifier, 'head.weight' is missing",
            remedy="It may be the published encoder: use --variant mean or --variant token",
        )
    network = VisionTransformer(
        num_classes=state["head.weight"].shape[0], use_mean_pooling="fc_norm.weight" in state, use_rel_pos_bias=True,
        **_trained(state, ""), **_shape(state, path),
    )  # fmt: skip
    load_into(network, state, name=str(path), ignore=LEFT_OVER, allow_missing=LEFT_OVER[:1])
    return network.eval()


def segmenter(path: Path, asset: Asset | None = None) -> SegViT | UPerNet:
    """A fine-tuned segmentation network, in eval mode; the file tells which of the two, its size and its classes.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no segmentation network.
    """
    return segmenter_of(read(path, asset), str(path))


def is_segmenter(state: Mapping[str, Tensor]) -> bool:
    """Is it of a segmentation network, rather than of the encoder alone?"""
    return f"backbone.blocks.0.{OWN}" in state


def segmenter_of(
    state: Mapping[str, Tensor], name: str, *, classes: int | None = None, **shape: Any
) -> SegViT | UPerNet:
    """Like :func:`segmenter`, of a state dict.

    Parameters
    ----------
    classes : what gives classes begins anew where the state has another number of them.
    shape : arguments of the backbone in place of the published ones.
    """
    if not is_segmenter(state):
        raise WeightsError(
            f"{name}: holds no segmentation network, 'backbone.blocks.0.{OWN}' is missing",
            remedy="The published file is an encoder only: fine-tune it for segmentation first",
        )
    shape = {"img_size": _grid(state[f"backbone.blocks.0.{OWN}"]) * 16} | shape
    network: SegViT | UPerNet
    if "decode_head.q.weight" in state:
        found = state["decode_head.q.weight"].shape[0]
        network = segvit(classes or found, trained=bool(_trained(state, "backbone.")), **shape)
    elif "decode_head.conv_seg.weight" in state:
        found = state["decode_head.conv_seg.weight"].shape[0]
        network = upernet(classes or found, **shape)
    else:
        raise WeightsError(
            f"{name}: its head is neither SegViT's nor UPerNet's", remedy="Train one of upstream's two configurations"
        )
    fresh = () if classes in (None, found) else BY_CLASS
    kept = {key: value for key, value in state.items() if not any(re.fullmatch(one, key) for one in fresh)}
    load_into(network, kept, name=name, ignore=LEFT_OVER, allow_missing=(LEFT_OVER[0], *fresh))
    return network.eval()


def _trained(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Biases and layer scale, where the file has them: upstream's SegVit configuration leaves both out."""
    found: dict[str, Any] = {}
    if f"{prefix}blocks.0.attn.q_bias" in state:
        found["qkv_bias"] = TRAINED["qkv_bias"]
    if f"{prefix}blocks.0.gamma_1" in state:
        found["init_values"] = TRAINED["init_values"]
    return found


def _shape(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    table = state.get(SHARED, state.get(f"blocks.0.{OWN}"))
    if table is None or table.ndim != 2:
        raise WeightsError(f"{path}: has no table of relative positions", remedy="It is the file of another model")
    return BASE | {"img_size": _grid(table) * 16}


def _grid(table: Tensor) -> int:
    return (round((table.shape[0] - EXTRA) ** 0.5) + 1) // 2
