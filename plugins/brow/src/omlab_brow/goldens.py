"""How golden files of BROW map onto the network and the preparation of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omlab_brow import preprocess
from omlab_brow.network import SIZES, VisionTransformer
from omlab_sdk.golden import Golden, GoldenError, seed_module

GOLDENS = ("brow",)
_NETWORK = {
    "img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
}  # fmt: skip


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of something that this package does not have.
    """
    words = re.findall(r"\w+", str(golden.meta.get("entry", "")))
    if "VisionTransformer" in words or set(SIZES) & set(words):
        with torch.no_grad():
            return _encoder(golden, network_of(golden.kwargs, words))
    if {"build_transform", "transform", "datasets"} & set(words):
        tile = next(iter(golden.literal.values()), None)
        if tile is None:
            raise GoldenError(f"{golden.path}: holds no tile to prepare")
        side = _crop(golden)
        return {name: preprocess.evaluation(np.asarray(tile, np.uint8), side) for name in golden.outputs}
    known = ", ".join(["VisionTransformer", *SIZES, "build_transform"])
    raise GoldenError(f"{golden.path}: is of '{golden.meta.get('entry', '')}', brow has {known}")


def network_of(given: Mapping[str, Any], words: list[str]) -> VisionTransformer:
    """The encoder that constructor arguments and the name of upstream's factory describe."""
    arguments = dict(next((SIZES[word] for word in words if word in SIZES), {}))
    arguments |= {key: value for key, value in given.items() if key in _NETWORK}
    if isinstance(arguments.get("img_size"), list):
        arguments["img_size"] = arguments["img_size"][0]
    epsilon = re.search(r"eps\s*=?\s*([\d.eE+-]+)", str(given.get("norm_layer", "")))
    if epsilon:
        arguments["eps"] = float(epsilon.group(1))
    elif "VisionTransformer" in words and "norm_layer" not in given:
        arguments["eps"] = 1e-5  # torch's own, which upstream's class takes where its factories set another
    return VisionTransformer(**arguments)


def _crop(golden: Golden) -> int:
    shapes = [mark.shape for mark in golden.outputs.values() if len(mark.shape) >= 3]
    return int(shapes[0][-1]) if shapes else preprocess.SIDE


def _encoder(golden: Golden, network: VisionTransformer) -> dict[str, np.ndarray]:
    seed_module(network.eval(), golden.kept)
    factor = re.search(r"pos_embed (?:times|multiplied by|x) ?([\d.]+)", str(golden.meta.get("notes", "")))
    if factor:
        network.pos_embed.mul_(float(factor.group(1).rstrip(".")))
    names = [*golden.literal, *golden.meta.get("inputs", {})]
    if not names:
        raise GoldenError(f"{golden.path}: has no image among its inputs")
    image = torch.from_numpy(np.array(golden.input(names[0]), dtype=np.float32))
    found: dict[str, Tensor] = {"patch_embed": network.patch_embed(image)}
    found["pos_encoding"] = network.positions(*image.shape[2:])
    x = found["tokens"] = network.tokens(image)
    for number, block in enumerate(network.blocks):
        x = found[f"block{number}"] = block(x)
    found["norm"] = network.norm(x)
    # Each of these is a pass of its own through the network, so only those that are asked for are run.
    passes: dict[str, Callable[[], Tensor]] = {
        "embedding": lambda: network(image), "last_attention": lambda: network.get_last_selfattention(image),
    }  # fmt: skip
    for count in range(1, len(network.blocks) + 1):
        passes[f"intermediate_{count}"] = lambda count=count: network.get_intermediate_layers(image, count)[0]
    found |= {name: run() for name, run in passes.items() if name in golden.outputs}
    return {name: tensor.detach().numpy() for name, tensor in found.items()}
