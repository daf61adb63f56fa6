"""How golden files of D-MIM map onto the networks and steps of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omlab_d_mim import blurs, checkpoint, losses, preprocess, protocol
from omlab_d_mim.network import CONV_SIZES, VIT_SIZES, ConvViT, VisionTransformer
from omlab_d_mim.pretraining import Autoencoder, ConvAutoencoder, VisionAutoencoder
from omlab_d_mim.segmenter import ConvEncoder, UNet, UPerNet, VisionEncoder
from omlab_sdk.golden import Golden, GoldenError, seed_module
from omlab_sdk.networks.masking import patchify
from omlab_sdk.networks.vit import sincos

GOLDENS = ("d-mim",)
_TRUNK = {
    "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "drop_path_rate",
}  # fmt: skip
_HEAD = {"num_classes", "global_pool"}
_DECODER = {"decoder_embed_dim", "decoder_depth", "decoder_num_heads", "norm_pix_loss"}
_ENCODER = _TRUNK | {"init_values", "use_rel_pos_bias", "out_indices"}
#: Upstream's names of modules, classes and constructors, as in "models_dconvmae.dconvmae_convvit_base_patch16".
_PRETRAINED = re.compile(r"MaskedAutoencoder|models_d?(?:conv)?mae\b|\bd?(?:conv)?mae_\w*(?:base|large|huge)")
_CLASSIFIED = re.compile(
    r"(?<!Autoencoder)ConvViT\b|models_(?:conv)?vit\b|VisionTransformer|\b(?:conv)?vit_(?:base|large|huge)"
)
_DEBLURRING = re.compile(r"DMasked|models_d(?:conv)?mae\b|\bd(?:conv)?mae_")
#: Of plain vision transformers only; the others take a number for each stage.
_ONE_NUMBER = ("img_size", "patch_size")


def compute(golden: Golden) -> Mapping[str, np.ndarray]:
    """Every output that the file may ask for.

    Raises
    ------
    GoldenError
        The file is of a network or step that this package does not have.
    """
    entry = str(golden.meta.get("entry", ""))
    parts: tuple[Callable[[Golden], dict[str, Any]], ...]
    if re.search(r"UPerHead|EncoderDecoder", entry):
        parts = (_upernet,)
    elif "segmentation_models_pytorch" in entry or "SEG_UNET:" in entry:
        parts = (_unet,)
    else:
        # A file may hold an autoencoder's and a classifier's outputs.
        autoencoder = (_pretraining,) if _part_of(entry, _PRETRAINED) else ()
        classifier = (_classifier,) if _part_of(entry, _CLASSIFIED) else ()
        parts = autoencoder + classifier or (_steps,)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for part in parts:
            found |= part(golden)
    if not found:
        raise GoldenError(
            f"{golden.path}: is of '{entry}', d-mim has ConvViT, VisionTransformer, the masked autoencoders, "
            "UNet, UNet++, UPerNet, and the transforms"
        )
    return {name: value.numpy() if isinstance(value, Tensor) else np.asarray(value) for name, value in found.items()}


def _part_of(entry: str, names: re.Pattern[str]) -> str:
    """The part of an entry, with semicolons between, that has one of these names; empty if none has."""
    return next((part for part in entry.split(";") if names.search(part)), "")


def _arguments(given: Mapping[str, Any], known: set[str], *, conv: bool) -> dict[str, Any]:
    arguments = {key: value for key, value in given.items() if key in known}
    if not conv:
        for name in _ONE_NUMBER:
            if isinstance(arguments.get(name), list):
                arguments[name] = arguments[name][0]
    epsilon = re.search(r"eps\s*=?\s*([\d.eE+-]+)", str(given.get("norm_layer", "")))
    return arguments | ({"eps": float(epsilon.group(1))} if epsilon else {})


def _sized(entry: str, *, conv: bool) -> dict[str, Any]:
    """What a constructor of a size stands for: ``convvit_base_patch16``, ``dmae_vit_huge_patch14``."""
    size, patch = re.search(r"_(base|large|huge)", entry), re.search(r"patch(\d+)", entry)
    shape = dict((CONV_SIZES if conv else VIT_SIZES)[size.group(1)]) if size else {}
    return shape | ({"patch_size": int(patch.group(1))} if patch and not conv else {})


def _given(golden: Golden, *names: str) -> dict[str, Any]:
    """Constructor arguments of a class, where a file has those of several."""
    kwargs = golden.kwargs
    own = next((kwargs[name] for name in names if isinstance(kwargs.get(name), Mapping)), None)
    return dict(kwargs if own is None else own)


@contextmanager
def _tapped(network: nn.Module, golden: Golden, prefix: str, found: dict[str, Any]) -> Iterator[None]:
    """Keep what submodules give that the file asks for as "tap.<module>"."""
    modules, handles = dict(network.named_modules()), []
    for name in golden.outputs:
        module = modules.get(name.removeprefix(f"{prefix}tap."))
        if module is None or not name.startswith(f"{prefix}tap."):
            continue

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            found[name] = output

        handles.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(golden: Golden, *names: str) -> Tensor:
    """The first of these inputs that the file has."""
    has = [*golden.literal, *golden.meta.get("inputs", {})]
    name = next((name for name in names if name in has), None)
    if name is None:
        raise GoldenError(f"{golden.path}: has no input '{names[0]}', it has {', '.join(has) or 'none'}")
    return torch.from_numpy(np.array(golden.input(name), dtype=np.float32))


def _pretraining(golden: Golden) -> dict[str, Any]:
    entry = _part_of(str(golden.meta["entry"]), _PRETRAINED)
    conv = bool(re.search(r"conv", entry, re.IGNORECASE))
    given = _given(golden, "DMaskedAutoencoderConvViT", "MaskedAutoencoderConvViT", "DMaskedAutoencoderViT",
                   "MaskedAutoencoderViT")  # fmt: skip
    arguments = _sized(entry, conv=conv) | _arguments(given, _TRUNK | _DECODER, conv=conv)
    arguments.pop("qkv_bias", None)
    network: Autoencoder = (ConvAutoencoder if conv else VisionAutoencoder)(**arguments)
    seed_module(network.eval(), golden.kept)
    vanilla = not _DEBLURRING.search(entry)
    ratio = golden.meta.get("call", {}).get("mask_ratio", 0.75)
    image = _input(golden, "blurred", "image", "img", "imgs")
    original = image if vanilla else _input(golden, "original", "image")
    found: dict[str, Any] = {}
    with _tapped(network, golden, "", found):
        latent, mask, restore = network.encode(image, ratio, _input(golden, "noise"))
        prediction = network.decode(latent, restore)
    found |= {"latent": latent, "mask": mask, "ids_restore": restore, "pred": prediction}
    found["patchify(original)"] = patchify(original, network.patch)
    found["patchify(image)"] = found["patchify(blurred)"] = patchify(image, network.patch)
    configured = network.norm_pix_loss
    for ending, standardised in (("", configured), ("_norm_pix", True)):
        network.norm_pix_loss = standardised
        found[f"vanilla_loss{ending}"] = network.loss(image, prediction, mask)
        deblurring = network.loss(original, prediction)
        found[f"loss{ending}"] = found[f"vanilla_loss{ending}"] if vanilla else deblurring
    return found


def _classifier(golden: Golden) -> dict[str, Any]:
    entry = _part_of(str(golden.meta["entry"]), _CLASSIFIED)
    conv = "conv" in entry.lower()
    given = _given(golden, "ConvViT" if conv else "VisionTransformer")
    # "(vit.*)" says that its outputs are called so.
    named = re.search(r"\((\w+\.)\*\)", entry)
    prefix = named.group(1) if named else ""
    arguments = _sized(entry, conv=conv) | _arguments(given, _TRUNK | _HEAD, conv=conv)
    pooled = arguments.pop("global_pool", True)
    image = _input(golden, "image")
    found: dict[str, Any] = {}
    # The taps of a file are those of its first network.
    for averages in (pooled, not pooled):
        ending = f".global_pool={averages}"
        if averages != pooled and not any(name.endswith(ending) for name in golden.outputs):
            continue
        network = (ConvViT if conv else VisionTransformer)(global_pool=averages, **arguments)
        seed_module(network.eval(), golden.kept)
        kept: dict[str, Any] = {}
        with _tapped(network, golden, prefix, kept):
            features = network.forward_features(image)
        found = kept | found
        pair = {"features": features, "logits": network.head(features)}
        for name, value in pair.items():
            found[f"{prefix}{name}{ending}"] = value
            found.setdefault(f"{prefix}{name}", value)
    return found


def _encoder(name: str, given: Mapping[str, Any]) -> ConvEncoder | VisionEncoder:
    if name == "mae":
        return VisionEncoder(**_arguments(given, _ENCODER - {"use_rel_pos_bias"}, conv=False))
    return ConvEncoder(**_arguments(given, _ENCODER - {"out_indices"}, conv=True))


def _unet(golden: Golden) -> dict[str, Any]:
    entry, kwargs = str(golden.meta["entry"]), golden.kwargs
    named = re.search(r"encoder_name=['\"](\w+)['\"]", entry)
    encoder = kwargs.get("encoder_name") or (named.group(1) if named else "convmae")
    network = UNet(
        _encoder(encoder, kwargs.get("encoder", {})),
        nested=bool(re.search(r"UnetPlusPlus|U-?Net\+\+", entry)),
        classes=kwargs.get("classes", 1),
        widths=kwargs.get("decoder_channels", (256, 128, 64, 32)),
    )
    seed_module(network.eval(), golden.kept)
    found: dict[str, Any] = {}
    with _tapped(network, golden, "", found):
        features = network.encoder(_input(golden, "image"))
        decoded = network.decoder(features)
        logit = network.segmentation_head(decoded)
    found |= {f"feature{i}": feature for i, feature in enumerate(features)}
    return found | {"decoder": decoded, "logit": logit, "probability": logit.sigmoid()}


def _upernet(golden: Golden) -> dict[str, Any]:
    kwargs = golden.kwargs
    network = UPerNet(
        classes=kwargs.get("num_classes", 2), channels=kwargs.get("channels", 768),
        auxiliary_channels=kwargs.get("auxiliary_channels", 256),
        **_arguments(kwargs.get("backbone", {}), _ENCODER - {"out_indices"}, conv=True),
    )  # fmt: skip
    seed_module(network.eval(), golden.kept)
    found: dict[str, Any] = {}
    with _tapped(network, golden, "", found):
        features = network.backbone(_input(golden, "image"))
        found["logits"] = network.decode_head(features)
    found |= {f"feature{i}": feature for i, feature in enumerate(features)}
    if network.auxiliary_head is not None:
        found["auxiliary_logits"] = network.auxiliary_head(features[2])
    if "slide_logits" in golden.outputs:
        crop = kwargs.get("crop", network.backbone.side)
        found["slide_logits"] = _slid(network, _input(golden, "big"), crop, kwargs["stride"])
    return found


def _slid(network: nn.Module, image: Tensor, crop: int, stride: int) -> Tensor:
    """Logits of all windows, averaged where they overlap."""
    rows, columns = image.shape[2:]
    total: Any = 0
    count = torch.zeros(rows, columns)
    for top in preprocess.starts(rows, crop, stride):
        for left in preprocess.starts(columns, crop, stride):
            place = (..., slice(top, top + crop), slice(left, left + crop))
            logits = network(image[place])
            if isinstance(total, int):
                total = torch.zeros(*logits.shape[:2], rows, columns)
            total[place] += logits
            count[place] += 1
    return total / count  # type: ignore[no-any-return]


def _steps(golden: Golden) -> dict[str, Any]:
    """Blurs, transforms, positions, loading, losses and scores, by the names of the outputs."""
    found: dict[str, Any] = {}
    loaded = _loaded(golden) if "pretraining" in golden.kwargs else {}
    for name in golden.outputs:
        blur = re.fullmatch(r"(gaussian|mean|median|defocus)_([\d.]+)", name)
        table = re.fullmatch(r"sincos_(\d+)_(\d+)_(True|False)", name)
        segmented = re.fullmatch(r"seg_(image|mask)_(\d+)", name)
        if blur and "gray" in golden.literal:
            amount: Any = float(blur.group(2)) if blur.group(1) == "gaussian" else int(blur.group(2))
            found[name] = getattr(blurs, blur.group(1))(golden.input("gray"), amount)
        elif table:
            found[name] = sincos(int(table.group(1)), int(table.group(2)), extra=int(table.group(3) == "True"))
        elif segmented and segmented.group(1) == "image":
            found[name] = preprocess.segmentation(golden.input("seg"), int(segmented.group(2)))
        elif segmented:
            found[name] = preprocess.mask(golden.input("mask"), int(segmented.group(2)) // 2)
        elif name == "cls_eval":
            found[name] = preprocess.classification(golden.input("rgb"))
        elif name == "pretrain_eval":
            found[name] = preprocess.pretraining(golden.input("rgb"))
        elif name.startswith("pos_embed_") and loaded:
            found[name] = loaded["pos_embed"]
        elif name.startswith("loaded."):
            found[name] = loaded[name.removeprefix("loaded.")]
    if {"p", "g"} <= set(golden.meta.get("inputs", {})):
        probability, truth = _input(golden, "p").sigmoid(), (_input(golden, "g") > 0.2).float()
        found["dice_loss"] = losses.dice_loss(probability, truth)
        found["jaccard_loss"] = losses.jaccard_loss(probability, truth)
        found |= protocol.overlap(probability.numpy(), truth.numpy())
    return found


def _loaded(golden: Golden) -> dict[str, Tensor]:
    """A name-seeded pre-training file in a segmentation network's encoder."""
    kwargs = golden.kwargs
    name = "mae" if isinstance(kwargs["encoder"].get("embed_dim"), int) else "convmae"
    conv = name == "convmae"
    arguments = _arguments(kwargs["pretraining"], _TRUNK | _DECODER, conv=conv)
    network = (ConvAutoencoder if conv else VisionAutoencoder)(**arguments)
    encoder = _encoder(name, kwargs["encoder"])
    checkpoint.load_encoder(encoder, seed_module(network).state_dict(), name="golden")
    return dict(encoder.state_dict())
