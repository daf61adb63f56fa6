"""Upstream's files into the networks: pre-training and classification checkpoints, the pickled segmentation network,
and mmsegmentation's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from omlab.cards import Asset, Variant
from omlab.errors import WeightsError
from omlab_d_mim.model import side_of
from omlab_d_mim.network import ConvTrunk, ConvViT, VisionTransformer
from omlab_d_mim.segmenter import ConvEncoder, UNet, UPerNet, VisionEncoder
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint
from omlab_sdk.networks.vit import interpolate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: What pre-training leaves in a file and other networks have no use for.
LEFT_OVER = (r"norm\..*", "mask_token", r"decoder_.*", r"stage\d_output_decode\..*")
INDEX = r".*relative_position_index"
#: Layers that tell the classes.
LAST = r"(segmentation_head\.0|(decode|auxiliary)_head\.conv_seg)\..*"
#: Share of the branches that a sample goes without, at the last block, when a segmenter learns.
DROPPED = 0.2
_CONTAINERS = ("state_dict", "model", "module")
#: Heads of the third stage by its width: no entry of a file tells them. That of a small test network comes with them.
HEADS = {768: 12, 1024: 16, 1280: 16}


def read(path: Path, asset: Asset | None = None) -> dict[str, Tensor]:
    """A file's state dict: under the card's key, else at ``state_dict``, ``model``, ``module`` or bare; without the
    ``module.`` that parallel training puts in front."""
    key = asset.key if asset else ""
    if not key:
        top = entries_of(path)
        key = next((name for name in _CONTAINERS if name in top and not hasattr(top[name], "dtype")), "")
    return _unwrapped(read_checkpoint(path, key=key, prefix=asset.prefix if asset else ""))


def read_segmenter(path: Path, asset: Asset | None = None) -> dict[str, Tensor]:
    """Like :func:`read`; also of the whole pickled network, as upstream's U-Net code saves it. Its code is not run."""
    from omlab_sdk.modules import read_module

    try:
        return read(path, asset)
    except WeightsError as plain:
        if not path.is_file():
            raise
        try:
            return _unwrapped(read_module(path))
        except WeightsError:
            raise plain from None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def embedder(path: Path, asset: Asset | None = None) -> ConvViT | VisionTransformer:
    """A pre-trained encoder without a head, in eval mode: the plainly normalised mean token, from which upstream's
    fine-tuning begins. The file tells which of the two encoders and its size."""
    state = read(path, asset)
    network = _classifier(state, path, classes=0, global_pool=True)
    load_into(network, state, name=str(path), ignore=(*LEFT_OVER, r"head\..*"), allow_missing=(r"fc_norm\..*",))
    return network.eval()


def classifier(path: Path, asset: Asset | None = None) -> ConvViT | VisionTransformer:
    """A fine-tuned classifier, in eval mode; the file tells encoder, size, pooling and classes.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no classifier (a pre-trained file has no head).
    """
    state = read(path, asset)
    if "head.weight" not in state:
        raise WeightsError(
            f"{path}: holds no classifier, 'head.weight' is missing",
            remedy="It may be a pre-trained encoder: use --variant convmae-deblurring or another of the embeddings",
        )
    network = _classifier(state, path, classes=state["head.weight"].shape[0], global_pool="fc_norm.weight" in state)
    load_into(network, state, name=str(path), ignore=LEFT_OVER[1:])
    return network.eval()


def load_pretrained(network: ConvViT | VisionTransformer, state: Mapping[str, Tensor], *, name: str) -> None:
    """A pre-training file into a classifier, as fine-tuning begins: ``head`` and ``fc_norm`` stay as constructed."""
    own = network.state_dict()
    fits = {key: value for key, value in state.items() if not key.startswith("head.") or _same_shape(own, key, value)}
    averaged = "fc_norm.weight" in own
    load_into(
        network, fits, name=name, ignore=LEFT_OVER[0 if averaged else 1 :],
        allow_missing=(r"head\..*", r"fc_norm\..*"),
    )  # fmt: skip


def load_encoder(encoder: ConvEncoder | VisionEncoder, state: Mapping[str, Tensor], *, name: str) -> None:
    """A pre-training file into a segmentation network's encoder, as its training begins: positions are brought to its
    grid, bicubic; layer scales, relative positions and what makes other resolutions stay as constructed."""
    extra = 0 if isinstance(encoder, ConvTrunk) else 1
    fits = {key: value for key, value in state.items() if not re.fullmatch(INDEX, key)}
    if "pos_embed" in fits:
        fits["pos_embed"] = interpolate(fits["pos_embed"].float(), encoder.grid, extra=extra)
    load_into(
        encoder, fits, name=name, ignore=(*LEFT_OVER, r"(fc_norm|head)\..*"),
        allow_missing=(r".*\.gamma_[12]", r".*relative_position_bias_table", INDEX, r"fpn\d?\..*"),
    )  # fmt: skip


def segmenter(path: Path, asset: Asset | None = None) -> UNet | UPerNet:
    """A trained segmentation network, in eval mode; the file tells which one, its encoder, its size and its classes.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no segmentation network.
    """
    return segmenter_of(read_segmenter(path, asset), str(path)).eval()


def is_segmenter(state: Mapping[str, Tensor]) -> bool:
    """Is it a whole segmentation network, and no pre-trained encoder alone?"""
    return "decode_head.conv_seg.weight" in state or "segmentation_head.0.weight" in state


def segmenter_of(state: Mapping[str, Tensor], name: str, *, classes: int | None = None) -> UNet | UPerNet:
    """Like :func:`segmenter`, of a state dict. Where it is to tell other ``classes``, the last layers begin anew."""
    path = Path(name)
    network: UNet | UPerNet
    if "decode_head.conv_seg.weight" in state:
        auxiliary = state.get("auxiliary_head.convs.0.conv.weight")
        network = UPerNet(
            classes=classes or state["decode_head.conv_seg.weight"].shape[0],
            channels=state["decode_head.conv_seg.weight"].shape[1],
            auxiliary_channels=None if auxiliary is None else auxiliary.shape[0],
            drop_path_rate=DROPPED, **_conv_shape(state, path, "backbone."),
        )  # fmt: skip
    elif "segmentation_head.0.weight" in state:
        nested = any(key.startswith("decoder.blocks.x_") for key in state)
        encoder: ConvEncoder | VisionEncoder
        if "encoder.patch_embed1.proj.weight" in state:
            encoder = ConvEncoder(drop_path_rate=DROPPED, **_conv_shape(state, path, "encoder."))
        else:
            encoder = VisionEncoder(drop_path_rate=DROPPED, **_vit_shape(state, path, "encoder."))
        network = UNet(
            encoder, nested=nested, classes=classes or state["segmentation_head.0.weight"].shape[0],
            widths=_widths(state, nested),
        )  # fmt: skip
    else:
        first = next(iter(state), "nothing")
        raise WeightsError(
            f"{name}: holds no segmentation network of D-MIM, its first entry is '{first}'",
            remedy="A pre-trained encoder needs a variant for embeddings, say --variant convmae-deblurring",
        )
    own = network.state_dict()
    fits = {k: v for k, v in state.items() if not re.fullmatch(LAST, k) or _same_shape(own, k, v)}
    missing = (INDEX,) if len(fits) == len(state) else (INDEX, LAST)
    load_into(network, fits, name=name, ignore=(INDEX,), allow_missing=missing)
    return network


def encoder_of(network: torch.nn.Module) -> str:
    """``"convmae"`` or ``"mae"``."""
    return "convmae" if hasattr(network, "patch_embed4") else "mae"


def check_side(found: int, expected: int, name: str) -> None:
    """Raise :class:`omlab.errors.WeightsError` for a network of images of another size."""
    if found != expected:
        raise WeightsError(
            f"{name}: was trained on {found} pixels, expected {expected}",
            remedy=f"Train it at {expected} pixels, upstream's configuration",
        )


def check_variant(network: UNet | UPerNet, variant: Variant, name: str) -> None:
    """Raise :class:`omlab.errors.WeightsError` for a segmentation network that is not the variant's."""
    encoder = network.backbone if isinstance(network, UPerNet) else network.encoder
    kind = "upernet" if isinstance(network, UPerNet) else "unetpp" if network.nested else "unet"
    found, wanted = (kind, encoder_of(encoder)), (variant.config["network"], variant.config["encoder"])
    if found != wanted:
        fitting = kind + ("-mae" if found[1] == "mae" else "")
        raise WeightsError(
            f"{name}: holds {found[0]} on the encoder {found[1]}, expected {wanted[0]} on {wanted[1]}",
            remedy=f"Use --variant {fitting}",
        )
    check_side(encoder.side, side_of(variant), name)
    head = None if isinstance(network, UPerNet) else network.segmentation_head[0]
    if isinstance(head, nn.Conv2d) and head.out_channels != 1:
        raise WeightsError(
            f"{name}: has {head.out_channels} classes, expected one foreground",
            remedy="Train it with one class, upstream's configuration; UPerNet takes several",
        )


def _same_shape(own: Mapping[str, Tensor], key: str, value: Tensor) -> bool:
    return key in own and own[key].shape == value.shape


def _classifier(
    state: Mapping[str, Tensor], path: Path, *, classes: int, global_pool: bool
) -> ConvViT | VisionTransformer:
    if "patch_embed1.proj.weight" in state:
        return ConvViT(num_classes=classes, global_pool=global_pool, **_conv_shape(state, path, ""))
    return VisionTransformer(num_classes=classes, global_pool=global_pool, **_vit_shape(state, path, ""))


def _shape_of(state: Mapping[str, Tensor], path: Path, name: str) -> tuple[int, ...]:
    if name not in state:
        first = next(iter(state), "nothing")
        raise WeightsError(
            f"{path}: has no entry '{name}', its first is '{first}'", remedy="It is the file of another model"
        )
    return tuple(state[name].shape)


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    numbers = [re.match(re.escape(blocks) + r"\.(\d+)\.", name) for name in state]
    return 1 + max((int(found.group(1)) for found in numbers if found), default=-1)


def _heads(state: Mapping[str, Tensor], path: Path, blocks: str, width: int) -> int:
    table = state.get(f"{blocks}.0.attn.relative_position_bias_table")
    if table is not None:
        return int(table.shape[1])
    if width not in HEADS:
        raise WeightsError(
            f"{path}: has tokens of {width} features, expected {', '.join(map(str, HEADS))}",
            remedy="Only upstream's sizes can be read: base, large and huge",
        )
    return HEADS[width]


def _conv_shape(state: Mapping[str, Tensor], path: Path, prefix: str) -> dict[str, Any]:
    """Constructor arguments of ConvMAE's encoder."""
    embeds = [_shape_of(state, path, f"{prefix}patch_embed{i}.proj.weight") for i in (1, 2, 3)]
    width, patches = tuple(shape[0] for shape in embeds), tuple(shape[2] for shape in embeds)
    grid = round(_shape_of(state, path, f"{prefix}pos_embed")[1] ** 0.5)
    third = grid * patches[2]
    second = third * patches[1]
    hidden = [_shape_of(state, path, f"{prefix}blocks{i}.0.mlp.fc1.weight")[0] for i in (1, 2, 3)]
    return {
        "img_size": (second * patches[0], second, third), "patch_size": patches, "in_chans": embeds[0][1],
        "embed_dim": width, "depth": tuple(_depth(state, f"{prefix}blocks{i}") for i in (1, 2, 3)),
        "num_heads": _heads(state, path, f"{prefix}blocks3", width[2]),
        "mlp_ratio": tuple(a / b for a, b in zip(hidden, width, strict=True)),
    }  # fmt: skip


def _vit_shape(state: Mapping[str, Tensor], path: Path, prefix: str) -> dict[str, Any]:
    """Constructor arguments of MAE's encoder."""
    width, channels, patch, _ = _shape_of(state, path, f"{prefix}patch_embed.proj.weight")
    grid = round((_shape_of(state, path, f"{prefix}pos_embed")[1] - 1) ** 0.5)
    return {
        "img_size": grid * patch, "patch_size": patch, "in_chans": channels, "embed_dim": width,
        "depth": _depth(state, f"{prefix}blocks"), "num_heads": _heads(state, path, f"{prefix}blocks", width),
        "mlp_ratio": _shape_of(state, path, f"{prefix}blocks.0.mlp.fc1.weight")[0] / width,
    }  # fmt: skip


def _widths(state: Mapping[str, Tensor], nested: bool) -> tuple[int, ...]:
    names = (f"decoder.blocks.{'x_0_' if nested else ''}{step}.conv2.0.weight" for step in range(8))
    return tuple(state[name].shape[0] for name in names if name in state)
