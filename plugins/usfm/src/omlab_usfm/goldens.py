"""How golden files of USFM map onto the networks and steps of this package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omlab_sdk.golden import Golden, GoldenError, seed_module, weight
from omlab_sdk.networks.upernet import resize
from omlab_usfm import losses, masking, preprocess, protocol
from omlab_usfm.checkpoint import SHARED, load_published
from omlab_usfm.network import TRAINED, Backbone, VisionTransformer
from omlab_usfm.segmenter import SegViT, UPerNet

GOLDENS = ("usfm",)
_TRUNK = {
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "init_values",
    "drop_path_rate", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias",
}  # fmt: skip
_HEAD = {"num_classes", "use_mean_pooling"}


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    entry, kwargs = str(golden.meta.get("entry", "")), golden.kwargs
    with torch.no_grad():
        if "remap_pretrained_keys" in entry:
            return _plain(_loading(golden))
        if "decode_head" in kwargs:
            return _plain(_segmenter(golden))
        if "VisionTransformer" in entry or "build_vit" in entry:
            return _plain(_classifier(golden))
        found = _steps(golden)
    if not found:
        raise GoldenError(
            f"{golden.path}: is of '{entry}', usfm has VisionTransformer, SegViT, UPerNet, the loading of the "
            "published file, and the transforms"
        )
    return found


def _plain(found: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in found.items()}


def _arguments(given: Mapping[str, Any], known: set[str], norm: str = "") -> dict[str, Any]:
    arguments = {key: value for key, value in given.items() if key in known}
    if isinstance(arguments.get("img_size"), list):
        arguments["img_size"] = arguments["img_size"][0]
    epsilon = re.search(r"eps\s*=?\s*([\d.eE+-]+)", str(given.get("norm_layer", norm)))
    return arguments | ({"eps": float(epsilon.group(1))} if epsilon else {})


def _seed(network: nn.Module, golden: Golden) -> None:
    """Seeded, but for integers and the loss's own weights."""
    own = [name for name in network.state_dict() if name.endswith("empty_weight")]
    seed_module(network.eval(), [*golden.kept, *own])


@contextmanager
def _tapped(network: nn.Module, golden: Golden, prefix: str, found: dict[str, Tensor]) -> Iterator[None]:
    """Keep what submodules give that the file asks for as "tap.<module>"."""
    modules = dict(network.named_modules())
    handles = []
    for name in golden.outputs:
        if not name.startswith(f"{prefix}tap."):
            continue
        module = modules.get(name.removeprefix(f"{prefix}tap."))
        if module is not None:

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                found[name] = output

            handles.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _image(golden: Golden, size: int | None = None) -> Tensor:
    names = [*golden.literal, *golden.meta.get("inputs", {})]
    wanted = [name for name in names if name.startswith("image") and (size is None or name.endswith(str(size)))]
    if not wanted:
        raise GoldenError(f"{golden.path}: has no image among its inputs, {', '.join(names) or 'none'}")
    return torch.from_numpy(np.array(golden.input(wanted[0]), dtype=np.float32))


def _classifier(golden: Golden) -> dict[str, Tensor]:
    kwargs = golden.kwargs
    variants = {name: given for name, given in kwargs.items() if isinstance(given, Mapping) and "embed_dim" in given}
    found: dict[str, Tensor] = {}
    for variant, given in (variants or {"main": kwargs}).items():
        prefix = "" if variant == "main" else f"{variant}."
        arguments = _arguments(given, _TRUNK | _HEAD, str(kwargs.get("norm_layer", "")))
        network = VisionTransformer(**arguments)
        _seed(network, golden)
        with _tapped(network, golden, prefix, found):
            features = found[f"{prefix}features"] = network.forward_features(_image(golden))
        logits = found[f"{prefix}logits"] = network.head(features)
        for name in golden.outputs:
            smoothing = re.fullmatch(re.escape(prefix) + r"loss_smoothing_([\d.]+)", name)
            if smoothing:
                labels = _labels(golden, name)
                found[name] = losses.smoothed_cross_entropy(logits, labels, float(smoothing.group(1)))
    return found


def _labels(golden: Golden, output: str) -> Tensor:
    """Literal, or said in the description of the output: "with labels [3, 0]"."""
    if "labels" in golden.literal:
        return torch.from_numpy(golden.input("labels").astype(np.int64))
    told = re.search(r"labels \[([\d, ]+)\]", str(golden.meta.get("outputs", {}).get(output, "")))
    if told is None:
        raise GoldenError(f"{golden.path}: says nowhere which labels '{output}' is for")
    return torch.tensor([int(one) for one in told.group(1).split(",")])


def _segmenter(golden: Golden) -> dict[str, Tensor]:
    kwargs = golden.kwargs
    head = kwargs["decode_head"]
    backbone = _arguments(kwargs["backbone"], _TRUNK) | {"out_indices": tuple(kwargs["backbone"]["out_indices"])}
    if head["type"] == "ATMHead":
        return _segvit(golden, backbone, head)
    if head["type"] == "UPerHead":
        return _upernet(golden, backbone, head, kwargs.get("auxiliary_head"))
    raise GoldenError(f"{golden.path}: is of the head '{head['type']}', usfm has ATMHead and UPerHead")


def _segvit(golden: Golden, backbone: dict[str, Any], head: Mapping[str, Any]) -> dict[str, Tensor]:
    names = {
        "embed_dims": "embed_dims", "num_classes": "classes", "num_layers": "layers", "num_heads": "heads",
        "use_stages": "stages", "img_size": "img_size",
    }  # fmt: skip
    arguments = {ours: head[theirs] for theirs, ours in names.items() if theirs in head}
    arguments["loss_weight"] = head.get("loss_decode", {}).get("loss_weight", 1.0)
    network = SegViT(backbone, {"in_channels": head["in_channels"]} | arguments)
    _seed(network, golden)
    found: dict[str, Tensor] = {}
    with _tapped(network, golden, "", found):
        features = network.backbone(_image(golden))
        outputs = network.decode_head(features)
    found |= {f"feature{i}": feature for i, feature in enumerate(features)}
    found |= {name: outputs[name] for name in ("pred_logits", "pred_masks", "pred")}
    for i, earlier in enumerate(outputs["aux_outputs"]):
        found |= {f"aux{i}.{name}": value for name, value in earlier.items()}
    if "labels" in golden.literal:
        terms = network.decode_head.loss_decode(outputs, _labels(golden, ""))
        found |= {f"loss.{name}": value for name, value in terms.items()}
        found["total_loss"] = torch.stack(list(terms.values())).sum()
    return found


def _upernet(
    golden: Golden, backbone: dict[str, Any], head: Mapping[str, Any], auxiliary: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    given = {
        "in_channels": head["in_channels"], "channels": head["channels"], "classes": head["num_classes"],
        "pool_scales": head.get("pool_scales", (1, 2, 3, 6)), "align_corners": head.get("align_corners", False),
    }  # fmt: skip
    beside = None
    if auxiliary:
        beside = {
            "before": auxiliary["in_channels"], "channels": auxiliary["channels"], "classes": auxiliary["num_classes"],
            "convs": auxiliary.get("num_convs", 1),
        }  # fmt: skip
    network = UPerNet(
        backbone, given, beside,
        auxiliary_index=(auxiliary or {}).get("in_index", 2),
        auxiliary_weight=(auxiliary or {}).get("loss_decode", {}).get("loss_weight", 0.4),
    )  # fmt: skip
    _seed(network, golden)
    image = _image(golden)
    found: dict[str, Tensor] = {}
    with _tapped(network, golden, "", found):
        features = network.backbone(image)
        found["logits"] = network.decode_head(features)
    found |= {f"feature{i}": feature for i, feature in enumerate(features)}
    if network.auxiliary_head is not None:
        found["auxiliary_logits"] = network.auxiliary_head(features[network.auxiliary_index])
    found["upsampled"] = resize(found["logits"], image.shape[2:])
    if "labels" in golden.literal:
        labels = _labels(golden, "")
        found["upsampled"] = resize(found["logits"], labels.shape[1:])
        found["loss"] = network.loss(image, labels)
    return found


def _published(golden: Golden) -> dict[str, Tensor]:
    """A name-seeded file in the published layout."""
    kwargs = golden.kwargs
    width, heads, side = kwargs["embed"], kwargs["heads"], 2 * kwargs["grid"] - 1
    hidden = int(width * kwargs.get("mlp_ratio", 4))
    patch = kwargs.get("patch", 16)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "mask_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,), SHARED: (side**2 + 3, heads), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    block: dict[str, tuple[int, ...]] = {
        "gamma_1": (width,), "gamma_2": (width,), "norm1.weight": (width,), "norm1.bias": (width,),
        "attn.q_bias": (width,), "attn.v_bias": (width,), "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "norm2.weight": (width,),
        "norm2.bias": (width,), "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    for i in range(kwargs["depth"]):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()}


def _loading(golden: Golden) -> dict[str, Tensor]:
    kwargs = golden.kwargs
    state = _published(golden)
    shape = TRAINED | {
        "embed_dim": kwargs["embed"], "depth": kwargs["depth"], "num_heads": kwargs["heads"], "use_rel_pos_bias": True,
        "patch_size": kwargs.get("patch", 16),
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for name in golden.outputs:
        asked = re.match(r"(cls|seg)(\d+)\.(?:mean_pooling=(True|False)\.)?", name)
        if asked is None or name in found:
            continue
        kind, size = asked.group(1), int(asked.group(2))
        if kind == "cls":
            mean = asked.group(3) != "False"
            network = VisionTransformer(img_size=size, num_classes=0, use_mean_pooling=mean, **shape)
            load_published(network.eval(), state, name="golden")
            found[f"cls{size}.mean_pooling={mean}.features"] = network.forward_features(_image(golden, size))
            tables = network
        else:
            last = kwargs["depth"] - 1
            backbone = Backbone(img_size=size, out_indices=tuple(range(last - 2, last + 1)), **shape)
            load_published(backbone.eval(), state, name="golden")
            found[f"seg{size}.feature2"] = backbone(_image(golden, size))[2]
            tables = backbone
        for i, block in enumerate(tables.blocks):
            found[f"{kind}{size}.table{i}"] = block.attn.relative_position_bias_table.detach()
    return found


def _steps(golden: Golden) -> dict[str, np.ndarray]:
    kwargs = golden.kwargs
    found: dict[str, np.ndarray] = {}
    if "fm" in kwargs:
        given = kwargs["fm"]
        image = golden.input("spectrum")
        band = masking.BandStop(
            kwargs.get("image_size", image.shape[-1]), ratio=given["Ratio"], base_width=given["BaseBW"],
            growth=given["IncreaseFactor"], greatest_growth=given["MaxIncrease"], protected=given["CenterProtect"],
        )  # fmt: skip
        found["f_mask_group"] = band.rings
        found["f_image"], found["f_mask"] = band(image, order=list(range(len(band.rings))))
    if "block" in kwargs:
        seed = re.search(r"seed\((\d+)\)", str(golden.meta.get("outputs", {})))
        image, generator = golden.input("block"), np.random.RandomState(int(seed.group(1)) if seed else 0)
        found["block_mask"] = masking.BlockMask(**kwargs["block"]).draw(generator)
        filled = masking.BlockMask(**kwargs["block"], colour="mean")(image, generator)
        found["block_mean_image"], found["block_mean_mask"] = filled
        found["mask_generator"] = masking.BlockMask(**kwargs["block"]).draw(generator)
    size = kwargs.get("crop")
    if size and "rgb" in golden.literal:
        found["cls_image"] = preprocess.classification(golden.input("rgb"), size)
        found["seg_image"] = preprocess.segmentation(golden.input("rgb"), size)
    if "mask" in golden.literal:
        mask = golden.input("mask")
        if size:
            found["seg_mask"] = preprocess.nearest(mask, size, size)
        one, other = mask[::2, ::2], mask[1::2, ::2]
        other = np.pad(other, ((0, one.shape[0] - other.shape[0]), (0, 0)))
        scores = protocol.overlap(one, other)
        found["dice"] = np.array(scores.pop("dice"))
        found["iou_acc_se_sp"] = np.array(list(scores.values()))
    return found
