"""Published files into the networks: containers, prefixes, and which entries may be missing or left over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab_endo_fm.detection import Detector
from omlab_endo_fm.network import Classifier, VideoTransformer
from omlab_endo_fm.segmentation import TransUNet
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]

#: Width of a head in every published size.
HEAD_WIDTH = 64
#: What other training runs leave beside an encoder and it has no use for.
LEFT_OVER = (r"head\..*", r"fpn[1-4]\..*")
PATCH = 16


def encoder_state(path: Path) -> State:
    """Entries of the encoder, whichever of upstream's containers the file is: a pre-training checkpoint (its teacher),
    ``model_state``, a fine-tuned classifier, or the encoder itself."""
    top = entries_of(path)
    key = next((k for k in ("teacher", "model_state", "backbone_state_dict", "student") if k in top), "")
    state = read_checkpoint(path, key=key, prefix="module.")
    inside = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    return inside or state


def shape_of(state: Mapping[str, Tensor], path: Path, *, heads: int | None = None) -> dict[str, Any]:
    """Constructor arguments of the encoder that a state dict is of.

    Raises
    ------
    omlab.errors.WeightsError
        The tables that tell them are missing.
    """
    for name in ("cls_token", "pos_embed", "time_embed"):
        if name not in state or state[name].ndim != 3:
            raise WeightsError(
                f"{path}: holds no encoder of Endo-FM, '{name}' is missing", remedy="Is it the file of another model?"
            )
    width = state["cls_token"].shape[2]
    depth = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    return {
        "img_size": PATCH * math.isqrt(state["pos_embed"].shape[1] - 1), "embed_dim": width, "depth": depth,
        "num_heads": heads or max(1, width // HEAD_WIDTH), "num_frames": state["time_embed"].shape[1],
    }  # fmt: skip


def encoder(path: Path, *, heads: int | None = None) -> VideoTransformer:
    """A pre-trained or fine-tuned encoder, of the size that the file has.

    Parameters
    ----------
    heads : attention heads; one for 64 channels without it.
    """
    state = encoder_state(path)
    network = VideoTransformer(**shape_of(state, path, heads=heads))
    load_into(network, state, name=str(path), ignore=LEFT_OVER)
    return network.eval()


def classifier(path: Path, *, heads: int | None = None) -> Classifier:
    """A fine-tuned classifier: encoder and linear layer; the number of classes is that of the file.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no classifier.
    """
    top = entries_of(path)
    if not {"backbone_state_dict", "state_dict"} <= set(top):
        has = ", ".join(list(top)[:8])
        raise WeightsError(
            f"{path}: holds no classifier, it has {has}, expected 'backbone_state_dict' and 'state_dict'",
            remedy="It may be a pre-trained file: use --variant base",
        )
    linear = read_checkpoint(path, key="state_dict", prefix="module.")
    if "linear.weight" not in linear:
        raise WeightsError(f"{path}: 'state_dict' holds no 'linear.weight', it has {', '.join(list(linear)[:8])}")
    network = Classifier(encoder(path, heads=heads), classes=linear["linear.weight"].shape[0])
    load_into(network, linear, name=str(path), allow_missing=(r"network\..*",))
    return network.eval()


def segmenter(path: Path, *, heads: int | None = None) -> TransUNet:
    """The segmentation network; a file of its bare state dict, or in ``model_state`` or ``state_dict``."""
    top = entries_of(path)
    key = next((k for k in ("model_state", "state_dict") if k in top), "")
    state = read_checkpoint(path, key=key, prefix="module.")
    network = TransUNet(**_segmenter_shape(state, path, heads))
    load_into(network, state, name=str(path))
    return network.eval()


def _segmenter_shape(state: Mapping[str, Tensor], path: Path, heads: int | None) -> dict[str, Any]:
    """Constructor arguments of the segmentation network that a state dict is of."""
    stem = "transformer.embeddings.hybrid_model"
    for name in ("transformer.encoder.cls_token", f"{stem}.root.conv.weight", "segmentation_head.0.weight"):
        if name not in state:
            raise WeightsError(
                f"{path}: holds no segmentation network, '{name}' is missing", remedy="Is it the file of another model?"
            )
    width = state["transformer.encoder.cls_token"].shape[-1]
    units = [
        len({n.split(".")[5] for n in state if n.startswith(f"{stem}.body.block{block}.unit")}) for block in (1, 2, 3)
    ]
    inside = [state[f"decoder.blocks.{i}.conv1.0.weight"].shape[1] for i in range(4)]
    outside = [state[f"decoder.blocks.{i}.conv1.0.weight"].shape[0] for i in range(4)]
    before = [state["decoder.conv_more.0.weight"].shape[0], *outside[:-1]]
    skips = [a - b for a, b in zip(inside, before, strict=True)]
    return {
        "n_classes": state["segmentation_head.0.weight"].shape[0], "hidden_size": width,
        "depth": len({n.split(".")[3] for n in state if n.startswith("transformer.encoder.layer.")}),
        "heads": heads or max(1, width // HEAD_WIDTH), "resnet_units": units,
        "grid": math.isqrt(state["transformer.embeddings.position_embeddings"].shape[1]),
        "width_factor": state[f"{stem}.root.conv.weight"].shape[0] / 64, "decoder_channels": outside,
        "skip_channels": skips, "n_skip": sum(skip > 0 for skip in skips),
    }  # fmt: skip


def detector(path: Path, *, heads: int | None = None) -> Detector:
    """The detection network; its state dict is in ``model``. The layers that nothing uses may be missing."""
    top = entries_of(path)
    state = read_checkpoint(path, key="model" if "model" in top else "", prefix="module.")
    body = {n.removeprefix("backbone.body."): t for n, t in state.items() if n.startswith("backbone.body.")}
    shape = shape_of(body, path, heads=heads)
    for name in ("rpn.head.cls_logits.weight", "backbone.fpn.fpn_inner2.weight"):
        if name not in state:
            raise WeightsError(
                f"{path}: holds no detector, '{name}' is missing", remedy="Is it the file of another model?"
            )
    classes, width = state["rpn.head.cls_logits.weight"].shape[:2]
    network = Detector(out_channels=width, classes=classes, **shape)
    load_into(
        network, state, name=str(path), ignore=(r"backbone\.body\.head\..*",),
        allow_missing=(r"backbone\.body\.fpn1\..*", r".*num_batches_tracked"),
    )  # fmt: skip
    return network.eval()
