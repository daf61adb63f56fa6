"""The small vision transformer as a model of omlab: picture to embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from omlab.cards import Variant
from omlab.cases import Case, Image
from omlab.errors import InputError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.results import Embedding, Result

if TYPE_CHECKING:
    import torch

WIDTH = 128
BATCH = {"batch": (1, 1, 256)}
#: Values in 0..1 are moved and scaled by these, so that those of most images have about mean 0 and variance 1.
MEAN, STD = 0.5, 0.25
#: Less cannot be told apart from noise.
SMALLEST = 8


def prepare(image: Image, size: int, channels: int) -> NDArray[np.float32]:
    """[channels, size, size] of an image, resized (bicubic, ignoring the aspect ratio) where it has another size."""
    picture = Picture.fromarray(image.rgb8())
    if channels == 1:
        picture = picture.convert("L")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Picture.Resampling.BICUBIC)
    pixels = np.asarray(picture, np.float32).reshape(size, size, channels)
    return np.ascontiguousarray((pixels / 255 - MEAN).transpose(2, 0, 1) / STD, dtype=np.float32)


class SmallVit(Model):
    """The model ``small-vit``. A variant's ``config`` may have another ``depth`` than the published one."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: images to features."""
        size, channels = variant.config["size"], variant.config["channels"]
        image = TensorSpec("image", "float32", ("batch", channels, size, size), "batch channel row column", BATCH)
        feature = TensorSpec("feature", "float32", ("batch", WIDTH), "batch feature", BATCH)
        return (
            Graph(
                name="encoder", inputs=(image,), outputs=(feature,), judge=Judge.EMBEDDING,
                sources=("omlab_small_vit.network", "omlab_sdk.networks.vit"), config=dict(variant.config),
            ),
        )  # fmt: skip

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network as everyone begins with it."""
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of small-vit", install="omlab-small-vit[convert]")
        from omlab_small_vit.network import network

        config = variant.config
        return network(config["size"], config["channels"], **{k: config[k] for k in ("depth",) if k in config})

    def small(self, variant: Variant) -> Variant:
        """Two blocks."""
        return variant.configured(depth=2)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The same: there are no other weights."""
        return self.untrained(graph, variant)

    def predict(self, case: Case, context: Context) -> Result:
        """Embedding [128]. Raises :class:`omlab.errors.InputError` for what is no image or a tiny one."""
        if not isinstance(case, Image):
            raise InputError(f"{case.name}: small-vit takes an image, found {case.kind}")
        rows, columns = case.pixels.shape[:2]
        if min(rows, columns) < SMALLEST:
            raise InputError(
                f"{case.name}: has {rows} x {columns} pixels, expected at least {SMALLEST} along each side"
            )
        config = context.variant.config
        with context.stage("prepare"):
            image = prepare(case, config["size"], config["channels"])
        with context.stage("network"):
            feature = context.engines["encoder"]({"image": image[None]})["feature"][0]
        return Embedding(vector=np.asarray(feature, np.float32))
