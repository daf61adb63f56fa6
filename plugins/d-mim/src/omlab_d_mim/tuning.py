"""Segmenters learn other structures, from a pre-training file or from what was trained before.

U-Net and U-Net++ follow upstream: Adam, soft Dice, one structure. So does UPerNet in its optimiser, rate and loss; how
long it learns and how many windows are in a batch are not told, and ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np
import torch
from torch import nn

from omlab.cards import Variant
from omlab.cases import Image
from omlab.errors import InputError, UsageError
from omlab.results import Segmentation
from omlab_d_mim import checkpoint, losses, preprocess
from omlab_d_mim.model import side_of, untrained
from omlab_d_mim.segmenter import UNet, UPerNet
from omlab_sdk.segmenters import Prepared, Recipe, beginning
from omlab_sdk.training.rates import parameter_groups, polynomial_rate

if TYPE_CHECKING:
    from torch import Tensor

RATE = 1e-4
#: Of U-Net: images a batch; upstream goes through its 2,879 images until 100 epochs bring no better score.
UNET_BATCH, UNET_BATCHES, UNET_EPOCHS = 16, 180, 1000
#: Of UPerNet: decay of weights, and of the rate from layer to layer towards the image; steps of the warm-up.
WEIGHT_DECAY, LAYER_DECAY, WARMUP = 0.05, 0.75, 1500
UPERNET_BATCH, UPERNET_BATCHES, UPERNET_EPOCHS = 4, 500, 100
_LAYER = re.compile(r"blocks3\.(\d+)\.")
_HEAD = re.compile(r"(decode_head|auxiliary_head|backbone\.fpn)\.")


class Plane(nn.Module):
    """A network of images on windows of one plane, [n, 3, 1, rows, columns]; UPerNet gives both heads to be trained."""

    def __init__(self, network: UNet | UPerNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        image = x[:, :, 0]
        if self.training and isinstance(self.network, UPerNet):
            return self.network.heads(image)
        return self.network(image)


def recipe(
    variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Mapping[str, Tensor] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a variant that segments. Its file, or ``state``, is a trained segmenter or, for the encoder alone,
    of the pre-training.

    Raises
    ------
    omlab.errors.UsageError
        The variant does not segment, there are several structures for a network of one, or a spacing is asked for.
    omlab.errors.WeightsError
        The file does not fit the variant.
    """
    config = dict(variant.config)
    if config["task"] != "segmentation":
        raise UsageError(
            f"the variant '{variant.name}' does not segment",
            remedy="Take --variant unetpp or upernet; their file may be that of a pre-trained encoder",
        )
    if spacing_mm:
        raise UsageError("d-mim sees images, which have no spacing that it could change")
    upernet = config["network"] == "upernet"
    if not upernet and outputs != 2:
        raise UsageError(
            f"{config['network']} tells one structure from the background, the dataset has labels up to {outputs - 1}",
            remedy="UPerNet takes several: --variant upernet",
        )
    network = _begun(variant, files, outputs if upernet else 1, state)
    side = side_of(variant)
    shared: dict[str, Any] = {
        "network": Plane(network), "state": network, "config": config, "patch": (1, side, side), "rate": RATE,
        "takes": Image, "prepare": partial(_prepared, side=None if upernet else side, blur=bool(config["blur"])),
        "clip": None, "mirror": (1, 2),
    }  # fmt: skip
    if upernet:
        return Recipe(
            loss=lambda given, target: losses.heads_loss([head.float() for head in given], target[:, 0, 0]),
            labels=lambda given: given.argmax(1)[:, None], optimiser=upernet_optimiser, schedule=upernet_rate,
            epochs=UPERNET_EPOCHS, batches=UPERNET_BATCHES, batch=UPERNET_BATCH, **shared,
        )  # fmt: skip
    return Recipe(
        # Every second pixel by OpenCV's rule for nearest pixels, which is what a mask of half the size has.
        loss=lambda given, target: losses.dice_loss(given.float(), (target[:, :, 0, ::2, ::2] > 0).float()),
        labels=lambda given: (given >= 0.5).long().repeat_interleave(2, 2).repeat_interleave(2, 3),
        optimiser=lambda network, rate: torch.optim.Adam(network.parameters(), rate),
        schedule=lambda epoch, epochs, rate: rate,
        epochs=UNET_EPOCHS, batches=UNET_BATCHES, batch=UNET_BATCH, **shared,
    )  # fmt: skip


def upernet_rate(epoch: float, epochs: float, rate: float) -> float:
    """A linear warm-up, of a short training at most one half, times a line down to nothing."""
    warmup = min(WARMUP / UPERNET_BATCHES, epochs / 2)
    return polynomial_rate(epoch, epochs, rate, 1.0) * min(1.0, (epoch + 0.5 / UPERNET_BATCHES) / warmup)


def upernet_optimiser(network: nn.Module, rate: float = RATE) -> torch.optim.AdamW:
    """AdamW; the rate of a layer falls with its distance from the heads."""
    numbers = [_LAYER.search(name) for name, _ in network.named_parameters()]
    depth = 1 + max((int(found.group(1)) for found in numbers if found), default=-1)
    groups = parameter_groups(
        network, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY, layer=layer_of, depth=depth
    )  # fmt: skip
    return torch.optim.AdamW([{k: v for k, v in group.items() if k != "names"} for group in groups], rate)


def layer_of(name: str, depth: int) -> int:
    """0 for all before the transformer, i + 1 for its block i, depth + 1 for the heads."""
    block = _LAYER.search(name)
    if block:
        return int(block.group(1)) + 1
    return depth + 1 if _HEAD.search(name) else 0


def _begun(
    variant: Variant, files: Mapping[str, Path], classes: int, state: Mapping[str, Tensor] | None
) -> UNet | UPerNet:
    name = "the weights to begin with"
    if state is None:
        (asset,) = variant.weights
        name = str(files[asset.id])
        state = checkpoint.read_segmenter(files[asset.id])
    with beginning():
        if checkpoint.is_segmenter(state):
            network = checkpoint.segmenter_of(state, name, classes=classes)
            checkpoint.check_variant(network, variant, name)
            return network
        made = cast("UNet | UPerNet", untrained(variant, classes=classes))
        checkpoint.load_encoder(made.encoder if isinstance(made, UNet) else made.backbone, state, name=name)
    return made


def _prepared(case: Image, reference: Segmentation, *, side: int | None, blur: bool) -> Prepared:
    """As the pipeline shows it to U-Net of ``side`` pixels, or to UPerNet. Raises
    :class:`omlab.errors.InputError` for a reference of another size."""
    rows, columns = case.pixels.shape[:2]
    if reference.labels.shape != (rows, columns):
        raise InputError(f"{case.name}: its label map has {reference.labels.shape} pixels, the image {(rows, columns)}")
    rgb = preprocess.as_trained(case.rgb8()) if blur else case.rgb8()
    image = preprocess.fitted(rgb) if side is None else preprocess.segmentation(rgb, side)
    labels: Any = cv2.resize(
        reference.labels.astype(np.int16), image.shape[:0:-1], interpolation=cv2.INTER_NEAREST
    )  # fmt: skip
    return Prepared(image=image[:, None], labels=labels[None])
