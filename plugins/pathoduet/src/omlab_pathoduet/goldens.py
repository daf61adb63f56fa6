"""How golden files of PathoDuet map onto the networks and steps of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omlab_pathoduet import preprocess, protocol
from omlab_pathoduet.network import SIZES, VisionTransformer
from omlab_pathoduet.pretraining import Bridge, CrossStain, MoCo
from omlab_sdk.golden import Golden, GoldenError, seed_module

GOLDENS = ("pathoduet",)
#: Upstream's names of the three stages; "PatchPositioning" is what its script still calls the second.
STAGES: dict[str, type[MoCo]] = {
    "MoCo_ViT": MoCo, "MoCo": MoCo, "Bridge": Bridge, "PatchPositioning": Bridge, "CrossStain": CrossStain,
}  # fmt: skip
_CLASSES = {"VisionTransformerMoCo", "VisionTransformer", "ConvStem", *SIZES}
#: Our constructor arguments that upstream's classes have by the same name.
_NETWORK = {
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias",
}  # fmt: skip


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    words = re.findall(r"\w+", str(golden.meta.get("entry", "")))
    stage = next((STAGES[word] for word in words if word in STAGES), None)
    if stage is not None:
        return _stage(golden, stage)
    with torch.no_grad():
        if _CLASSES & set(words):
            return _encoder(golden, network_of(golden.kwargs, words, classes=_classes(golden)))
    found = _protocol(golden)
    if not found:
        known = ", ".join(sorted({*_CLASSES, *STAGES}))
        raise GoldenError(f"{golden.path}: is of '{golden.meta.get('entry', '')}', pathoduet has {known}")
    return found


def network_of(given: Mapping[str, Any], words: list[str], *, classes: int | None = None) -> VisionTransformer:
    """The encoder that constructor arguments and the names of upstream's factory and class describe."""
    arguments = dict(next((SIZES[word] for word in words if word in SIZES), {}))
    arguments |= {key: value for key, value in given.items() if key in _NETWORK}
    if isinstance(arguments.get("img_size"), list):
        arguments["img_size"] = arguments["img_size"][0]
    told = " ".join(str(given.get(key, "")) for key in ("stem", "embed_layer"))
    if "conv" in told.lower() or "ConvStem" in words:
        arguments["stem"] = "conv"
    epsilon = re.search(r"eps\s*=?\s*([\d.eE+-]+)", str(given.get("norm_layer", "")))
    if epsilon:
        arguments["eps"] = float(epsilon.group(1))
    if classes is not None:
        arguments["num_classes"] = classes
    return VisionTransformer(**arguments, frozen_stem=bool(given.get("stop_grad_conv1", False)))


def _classes(golden: Golden) -> int | None:
    """Upstream's users replace the head, which the arguments do not tell; the logits do."""
    given = golden.kwargs.get("num_classes")
    if given is not None:
        return int(given)
    mark = golden.outputs.get("logits") or golden.outputs.get("logits_ref")
    return mark.shape[-1] if mark else None


def _tensors(golden: Golden) -> dict[str, Tensor]:
    names = [*golden.literal, *golden.meta.get("inputs", {})]
    return {name: torch.from_numpy(np.array(golden.input(name), dtype=np.float32)) for name in names}


def _plain(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def _encoder(golden: Golden, network: VisionTransformer) -> dict[str, np.ndarray]:
    seed_module(network.eval(), golden.kept)
    tensors = _tensors(golden)
    images = [name for name in tensors if not name.startswith("ref")]
    if not images:
        raise GoldenError(f"{golden.path}: has no image among its inputs, {', '.join(tensors) or 'none'}")
    image = tensors[images[0]]
    found = {"patch_embed": network.patch_embed(image), "pos_embed": network.pos_embed}
    references = {name: tensor for name, tensor in tensors.items() if name.startswith("ref")}
    cases: dict[str, Tensor | None] = {"": None} | {f"_{name}": tensor for name, tensor in references.items()}
    if references:
        cases["_ref"] = next(iter(references.values()))
        found["ref_token"] = network.reference_token(cases["_ref"])  # type: ignore[arg-type]
    for suffix, ref in cases.items():
        x = found[f"tokens{suffix}"] = network.tokens(image, ref)
        for number, block in enumerate(network.blocks):
            x = found[f"block{number}{suffix}"] = block(x)
        x = found[f"x_out{suffix}"] = network.norm(x)
        found[f"pooled{suffix}"] = network.pool(x)
        found[f"logits{suffix}"] = network.forward_head(x)
    return _plain(found)


def _stage(golden: Golden, stage: type[MoCo]) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    encoder = kwargs.get("encoder", {})
    arguments: dict[str, Any] = {key: kwargs[key] for key in ("dim", "mlp_dim") if key in kwargs}
    if "T" in kwargs:
        arguments["temperature"] = kwargs["T"]
    if stage is Bridge and "B_T" in kwargs:
        arguments["balance"] = kwargs["B_T"]
    words = re.findall(r"\w+", f"{kwargs.get('arch', '')} {golden.meta.get('entry', '')}")
    network = stage(lambda: network_of({"global_pool": "avg"} | encoder, words), **arguments)
    seed_module(network, golden.kept)
    network.train("eval()" not in str(golden.meta.get("notes", "")))
    tensors = _tensors(golden)
    order = ("he", "ihc", "stain") if stage is CrossStain else ("view1", "view2", "ref", "region")
    extra = {} if stage is CrossStain else {"m": kwargs.get("m", 0.99)}
    found = network.steps(*(tensors[name] for name in order if name in tensors), **extra)
    found = found | _after(golden, network)
    return _plain(found)


def _after(golden: Golden, network: nn.Module) -> dict[str, Tensor]:
    """Entries of the state dict after the forward pass: those that the file's descriptions name in full, "... after the
    step"."""
    state = network.state_dict()
    found = {}
    for name, told in golden.meta.get("outputs", {}).items():
        entry = re.match(r"[\w.]+", str(told))
        if entry and entry.group() in state:
            found[name] = state[entry.group()]
    return found


def _protocol(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    found: dict[str, np.ndarray] = {}
    if "schedule" in kwargs:
        given = kwargs["schedule"]
        epochs, at = given["epochs"], given.get("at", kwargs.get("at", []))
        found["lr"] = np.array([
            protocol.learning_rate(e, lr=given["lr"], warmup_epochs=given["warmup_epochs"], epochs=epochs) for e in at
        ])  # fmt: skip
        found["momentum"] = np.array([protocol.momentum(e, m=given.get("moco_m", 0.99), epochs=epochs) for e in at])
    if "lincls" in kwargs:
        given = kwargs["lincls"]
        found["lr_lincls"] = np.array([
            protocol.probe_learning_rate(e, lr=given["init_lr"], epochs=given["epochs"]) for e in given["at"]
        ])  # fmt: skip
    if "lars" in kwargs:
        found |= _lars(golden, dict(kwargs["lars"]))
    if "tile" in golden.literal:
        found |= _transforms(golden)
    return found


def _lars(golden: Golden, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    steps = settings.pop("steps")
    names = {"w": "lars_w", "b": "lars_b"}
    parameters = {short: nn.Parameter(torch.from_numpy(golden.input(name).copy())) for short, name in names.items()}
    optimiser = protocol.LARS(parameters.values(), **settings)
    for step in range(steps):
        for short, parameter in parameters.items():
            parameter.grad = torch.from_numpy(golden.input(f"lars_g{short}{step}").copy())
        optimiser.step()
    return {f"lars_{short}_after": parameter.detach().numpy() for short, parameter in parameters.items()}


def _transforms(golden: Golden) -> dict[str, np.ndarray]:
    """Outputs whose descriptions say what is done to the tile: "Resize(256) bilinear, CenterCrop(224), [0,1]"."""
    found = {}
    for name, told in golden.meta.get("outputs", {}).items():
        resize = re.search(r"Resize\((\d+)\)", str(told))
        if resize is None:
            continue
        tile = golden.input("tile")
        cut = re.search(r"tile\[:(\d+),\s*:(\d+)\]", str(told))
        if cut:
            tile = tile[: int(cut.group(1)), : int(cut.group(2))]
        crop = re.search(r"CenterCrop\((\d+)\)", str(told))
        shorter = int(resize.group(1))
        found[name] = (
            preprocess.evaluation(tile, int(crop.group(1)), shorter) if crop else preprocess.reference(tile, shorter)
        )
    return found
