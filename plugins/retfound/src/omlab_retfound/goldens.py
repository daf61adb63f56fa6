"""How golden files of RETFound map onto the networks and steps of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from omlab_retfound import preprocess, protocol, tables
from omlab_retfound.mae import MaskedAutoencoder
from omlab_retfound.network import LARGE, Embedder, VisionTransformer
from omlab_sdk.golden import Golden, GoldenError, seed_module
from omlab_sdk.training.rates import learning_rate, parameter_groups

GOLDENS = ("retfound",)
#: Upstream's factories and what they fix; its classes take everything from the arguments.
FACTORIES: dict[str, dict[str, Any]] = {
    "vit_large_patch16": LARGE,
    "RETFound_mae": LARGE,
    "RETFound_dinov2": LARGE | {"patch_size": 14, "init_values": 1.0, "all_tokens": True},
}
_CLASS = "VisionTransformer"
_AUTOENCODERS = {"MaskedAutoencoderViT", "mae_vit_large_patch16", "mae_vit_large_patch16_dec512d8b"}
_NETWORK = {
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "drop_path_rate", "global_pool", "init_values",
}  # fmt: skip
_AUTOENCODER = {
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth",
    "decoder_num_heads", "mlp_ratio", "norm_pix_loss",
}  # fmt: skip
#: The authors' repository before it moved to timm 0.9, which brought the second norm.
_EARLIER_COMMITS = ("f5ab012",)


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    words = _words(golden)
    with torch.no_grad():
        if "num_class" in golden.kwargs:
            return _metrics(golden)
        if words & _AUTOENCODERS:
            return _autoencoder(golden)
        if words & {_CLASS, *FACTORIES}:
            return _encoder(golden)
        found = _protocol(golden)
        if found:
            return found
    known = ", ".join(sorted({_CLASS, *FACTORIES, *_AUTOENCODERS}))
    raise GoldenError(f"{golden.path}: is of '{golden.meta.get('entry', '')}', retfound has {known}")


def _words(golden: Golden) -> set[str]:
    return set(re.findall(r"\w+", str(golden.meta.get("entry", ""))))


def _arguments(given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The constructor arguments among ``given``, by our names; upstream's norm layer is a text with its epsilon."""
    arguments = {key: value for key, value in given.items() if key in known}
    if isinstance(arguments.get("img_size"), list):
        arguments["img_size"] = arguments["img_size"][0]
    epsilon = re.search(r"eps\s*=\s*([\d.eE+-]+)", str(given.get("norm_layer", "")))
    if epsilon:
        arguments["eps"] = float(epsilon.group(1))
    return arguments


def network_of(golden: Golden, kwargs: Mapping[str, Any] | None = None) -> VisionTransformer:
    """The encoder that the file's constructor arguments describe."""
    words = _words(golden)
    fixed: dict[str, Any] = {}
    if _CLASS not in words:
        fixed = next((FACTORIES[word] for word in sorted(words) if word in FACTORIES), {})
    elif "timm" in words:  # the library's own class gives all tokens, upstream's subclass pools them
        fixed = {"all_tokens": True}
    arguments = {"all_tokens": False} | fixed | _arguments(golden.kwargs if kwargs is None else kwargs, _NETWORK)
    repository, _, commit = str(golden.meta.get("upstream", "")).partition("@")
    double = repository.startswith("rmaphoh/") and not commit.startswith(_EARLIER_COMMITS)
    arguments["global_pool"] = bool(arguments.get("global_pool", False))
    return VisionTransformer(**arguments, double_norm=double).eval()


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
    network = MaskedAutoencoder(**_arguments(golden.kwargs, _AUTOENCODER)).eval()
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
    if "model" in kwargs:
        groups = parameter_groups(
            network_of(golden, kwargs["model"]), weight_decay=kwargs["weight_decay"], layer_decay=kwargs["layer_decay"]
        )
        of_name = {name: group for group in groups for name in group["names"]}
        for key in ("lr_scale", "weight_decay"):
            found[key] = np.array([of_name[name][key] for name in kwargs["parameter_order"]])
    if "schedule" in kwargs:
        schedule = dict(kwargs["schedule"])
        epochs = schedule.pop("at")
        found["lr"] = np.array([learning_rate(at, **schedule) for at in epochs])
    if "label_smoothing" in kwargs:
        logits = torch.from_numpy(golden.input("logits"))
        labels = torch.from_numpy(golden.input("labels").astype(np.int64))
        loss = protocol.smoothed_cross_entropy(logits, labels, kwargs["label_smoothing"])
        found["label_smoothing_loss"] = loss.numpy()
    given = [name for name in (*golden.literal, *golden.meta.get("inputs", {})) if name.startswith("pos_embed")]
    for name in golden.outputs:
        head, _, last = name.rpartition("_")
        if head == "eval_transform":
            found[name] = preprocess.evaluation(golden.input("photo"), int(last))
        elif head == "zscore":
            found[name] = preprocess.zscore(golden.input("photo"), int(last))
        elif head == "pos_embed" and given:  # the table of a network with patches of 16 for that many pixels
            table = torch.from_numpy(golden.input(given[0]))
            found[name] = tables.interpolate(table, (int(last) // 16) ** 2).numpy()
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
