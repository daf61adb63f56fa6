"""How golden files of RETFound map onto the networks and steps of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from omlab_retfound import preprocess, protocol, tables
from omlab_retfound.mae import MaskedAutoencoder
from omlab_retfound.network import LARGE, Embedder, VisionTransformer
from omlab_sdk.golden import Golden, seed_module

GOLDENS = ("retfound",)
_NETWORK = {
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "drop_path_rate", "global_pool", "init_values",
}  # fmt: skip
_AUTOENCODER = {
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth",
    "decoder_num_heads", "mlp_ratio", "norm_pix_loss",
}  # fmt: skip


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for."""
    with torch.no_grad():
        if "num_class" in golden.kwargs:
            return _metrics(golden)
        if "schedule" in golden.kwargs:
            return _protocol(golden)
        if "mask_ratio" in golden.kwargs or "mae" in str(golden.meta.get("entry", "")).lower():
            return _autoencoder(golden)
        return _encoder(golden)


def network_of(golden: Golden, kwargs: Mapping[str, Any] | None = None) -> VisionTransformer:
    """The encoder that the file's constructor arguments describe."""
    given = dict(golden.kwargs if kwargs is None else kwargs)
    entry = str(golden.meta.get("entry", ""))
    arguments = {key: value for key, value in given.items() if key in _NETWORK}
    if "vit_large" in entry or ("RETFound_mae" in entry and "embed_dim" not in given):
        arguments = LARGE | arguments
    if "dinov2" in entry.lower():
        arguments = {"patch_size": 14, "init_values": 1.0} | arguments
    # The newer repository runs on timm 0.9, whose global-pool model normalises twice.
    newer = str(golden.meta.get("upstream", "")).startswith("rmaphoh/")
    return VisionTransformer(**arguments, double_norm=newer and bool(arguments.get("global_pool"))).eval()


def _encoder(golden: Golden) -> dict[str, np.ndarray]:
    network = network_of(golden)
    seed_module(network, golden.kept)
    names = list(golden.meta.get("inputs", {})) + list(golden.literal)
    image = torch.from_numpy(np.ascontiguousarray(golden.input(names[0]), dtype=np.float32))
    found = {"patch_embed": network.patch_embed(image)}
    x = found["tokens"] = network.tokens(image)
    for number, block in enumerate(network.blocks):
        x = found[f"block{number}"] = block(x)
    feature = network.pool(x)
    found["logits"] = network.classify(feature)
    found["features"] = feature[:, None] if network.double_norm else feature
    if network.all_tokens:
        found["notebook_feature"] = Embedder(network)(image)
    return {name: tensor.numpy() for name, tensor in found.items()}


def _autoencoder(golden: Golden) -> dict[str, np.ndarray]:
    arguments = {key: value for key, value in golden.kwargs.items() if key in _AUTOENCODER}
    network = MaskedAutoencoder(**arguments).eval()
    seed_module(network, golden.kept)
    image = torch.from_numpy(golden.input("image"))
    noise = torch.from_numpy(golden.input("noise"))
    latent, mask, restore = network.encode(image, golden.kwargs.get("mask_ratio", 0.75), noise)
    prediction = network.decode(latent, restore)
    found = {
        "latent": latent, "mask": mask, "ids_restore": restore, "pred": prediction,
        "image_from_pred": network.unpatchify(prediction), "target": network.patchify(image),
        "loss": network.loss(image, prediction, mask, norm_pix=False),
        "loss_norm_pix": network.loss(image, prediction, mask, norm_pix=True),
    }  # fmt: skip
    return {name: tensor.numpy() for name, tensor in found.items()}


def _protocol(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    found: dict[str, np.ndarray] = {}
    groups = protocol.parameter_groups(
        network_of(golden, kwargs["model"]), weight_decay=kwargs["weight_decay"], layer_decay=kwargs["layer_decay"]
    )
    of_name = {name: group for group in groups for name in group["names"]}
    for key in ("lr_scale", "weight_decay"):
        found[key] = np.array([of_name[name][key] for name in kwargs["parameter_order"]])
    schedule = dict(kwargs["schedule"])
    found["lr"] = np.array([protocol.learning_rate(at, **schedule) for at in schedule.pop("at")])
    if "label_smoothing" in kwargs:
        logits = torch.from_numpy(golden.input("logits"))
        labels = torch.from_numpy(golden.input("labels").astype(np.int64))
        found["label_smoothing_loss"] = protocol.smoothed_cross_entropy(
            logits, labels, kwargs["label_smoothing"]
        ).numpy()
    for name in golden.outputs:
        head, _, last = name.rpartition("_")
        if head == "eval_transform":
            found[name] = preprocess.evaluation(golden.input("photo"), int(last))
        elif head == "zscore":
            found[name] = preprocess.zscore(golden.input("photo"), int(last))
        elif head == "pos_embed":
            patches = (int(last) // 16) ** 2
            found[name] = tables.interpolate(torch.from_numpy(golden.input("pos_embed_196")), patches).numpy()
        elif name.startswith("sincos_"):
            width, grid = name.removeprefix("sincos_").split("_")
            found[name] = tables.sincos(int(width), int(grid))
    return found


def _metrics(golden: Golden) -> dict[str, np.ndarray]:
    labels = golden.input("labels").astype(int)
    classes = golden.kwargs["num_class"]
    logits = torch.from_numpy(golden.input("logits") + np.float32(2.5) * np.eye(classes, dtype=np.float32)[labels])
    probabilities = F.softmax(logits, dim=-1).numpy()
    roc, precision = protocol.areas(labels, probabilities)
    found = {
        "measures": protocol.binary_measures(labels, probabilities.argmax(axis=1), classes),
        "auc_roc": np.array(roc),
        "auc_pr": np.array(precision),
    }
    if "order" in golden.kwargs:
        found["metrics"] = protocol.ordered(protocol.metrics(labels, probabilities), golden.kwargs["order"])
    return found
