"""Segmenters learn other structures, from the published encoder or from what was trained before, as upstream trains
them: AdamW, a warm-up and half a cosine, the losses of SegViT's and UPerNet's heads.

How many images are in a batch and an epoch, and how long the warm-up of segmenters is, are not told; they are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from omlab.cards import Variant
from omlab.cases import Image
from omlab.errors import InputError, UsageError, WeightsError
from omlab.results import Segmentation
from omlab_sdk.segmenters import Prepared, Recipe, beginning
from omlab_sdk.training.rates import parameter_groups
from omlab_usfm import checkpoint, preprocess, protocol
from omlab_usfm.model import side_of
from omlab_usfm.segmenter import SegViT, UPerNet, segvit, upernet

if TYPE_CHECKING:
    from torch import Tensor

#: For 512 images a batch: the rate, and where its warm-up begins; it ends at nothing.
BASE_RATE, BASE_WARMUP_RATE = 3e-4, 5e-5
WEIGHT_DECAY, CLIP, EPOCHS, WARMUP_EPOCHS = 0.05, 5.0, 400, 20
BATCH, BATCHES_AN_EPOCH = 16, 100
RATE = protocol.scaled_rate(BASE_RATE, BATCH)


class Plane(nn.Module):
    """A segmenter on windows of one plane, [n, 3, 1, rows, columns]; all of its heads in training."""

    def __init__(self, network: SegViT | UPerNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        image = x[:, :, 0]
        return self.network.heads(image) if self.training else self.network(image)


def recipe(
    variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Mapping[str, Tensor] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Recipe:  # fmt: skip
    """The recipe of a variant that segments. Its file, or ``state``, is a trained segmenter, or the published encoder.

    From the encoder SegViT keeps the biases and layer scales that it was trained with; upstream's configuration drops
    them.

    Raises
    ------
    omlab.errors.UsageError
        The variant does not segment, or a spacing is asked for.
    omlab.errors.WeightsError
        The file does not fit the variant.
    """
    if variant.config["task"] != "segmentation":
        raise UsageError(
            f"the variant '{variant.name}' does not segment",
            remedy="Take --variant segvit or upernet; their file may be that of the published encoder",
        )
    if spacing_mm:
        raise UsageError("usfm sees images, which have no spacing that it could change")
    name = "the weights to begin with"
    if state is None:
        (asset,) = variant.weights
        name = str(files[asset.id])
        state = checkpoint.read(files[asset.id], asset)
    with beginning():
        network = _begun(variant, outputs, state, name)
    side = side_of(variant)
    return Recipe(
        network=Plane(network), state=network, config=dict(variant.config), patch=(1, side, side),
        prepare=partial(_prepared, side=side),
        loss=lambda given, target: network.heads_loss(_in_float32(given), target[:, 0, 0]),
        labels=lambda given: given.argmax(1)[:, None], optimiser=optimiser, schedule=schedule, rate=RATE, clip=CLIP,
        epochs=EPOCHS, batches=BATCHES_AN_EPOCH, batch=BATCH, mirror=(1, 2), takes=Image,
    )  # fmt: skip


def optimiser(network: nn.Module, rate: float = RATE) -> torch.optim.AdamW:
    """AdamW; all layers have one rate, as upstream lets it fall towards the image only in classifiers."""
    groups = parameter_groups(network, weight_decay=WEIGHT_DECAY)
    return torch.optim.AdamW([{k: v for k, v in group.items() if k != "names"} for group in groups], rate)


def schedule(epoch: float, epochs: float, rate: float = RATE) -> float:
    """Learning rate at a fractional epoch; the warm-up of a short training is at most half of it."""
    return protocol.learning_rate(
        epoch, lr=rate, warmup_lr=rate * BASE_WARMUP_RATE / BASE_RATE, min_lr=0.0,
        warmup_steps=min(WARMUP_EPOCHS, epochs / 2), steps=epochs,
    )  # fmt: skip


def _begun(variant: Variant, classes: int, state: Mapping[str, Tensor], name: str) -> SegViT | UPerNet:
    head, shape = variant.config["head"], dict(variant.config.get("shape", {}))
    if not checkpoint.is_segmenter(state):
        side = side_of(variant)
        network = (
            segvit(classes, img_size=side, trained=True, **shape)
            if head == "segvit"
            else upernet(classes, img_size=side, **shape)
        )
        checkpoint.load_published(network.backbone, state, name=name)
        return network
    network = checkpoint.segmenter_of(state, name, classes=classes, **shape)
    found, side = type(network).__name__.lower(), network.backbone.grid * 16
    if found != head or side != side_of(variant):
        raise WeightsError(
            f"{name}: holds {found} on {side} pixels, expected {head} on {side_of(variant)}",
            remedy=f"Use --variant {found}" if found != head else "Begin with the published encoder",
        )
    return network


def _in_float32(given: Any) -> Any:
    if isinstance(given, torch.Tensor):
        return given.float()
    if isinstance(given, Mapping):
        return {name: _in_float32(value) for name, value in given.items()}
    return [_in_float32(value) for value in given]


def _prepared(case: Image, reference: Segmentation, *, side: int) -> Prepared:
    """As the pipeline shows it. Raises :class:`omlab.errors.InputError` for a reference of another size."""
    shape = case.pixels.shape[:2]
    if reference.labels.shape != shape:
        raise InputError(f"{case.name}: its label map has {reference.labels.shape} pixels, the image {shape}")
    labels = preprocess.nearest(reference.labels.astype(np.int16), side, side)
    return Prepared(image=preprocess.segmentation(case.rgb8(), side)[:, None], labels=labels[None])
