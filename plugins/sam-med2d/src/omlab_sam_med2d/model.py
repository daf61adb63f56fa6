"""SAM-Med2D as a model of omlab: a picture and prompts to masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import Variant
from omlab.errors import require
from omlab.graphs import Graph
from omlab_sdk.segment_anything.model import SMALL, SOURCES, SegmentAnything

if TYPE_CHECKING:
    import torch


class SamMed2D(SegmentAnything):
    """The model ``sam-med2d``. A variant's ``config`` may have a ``shape``: arguments of the image encoder in place of
    those of its ``size``."""

    sources = (*SOURCES, "omlab_sam_med2d.encoder", "omlab_sam_med2d.network", "omlab_sam_med2d.checkpoint")

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The part of the network that ``graph`` is of, as constructed."""
        from omlab_sam_med2d.network import Decoder, Encoder, Sam

        sam = Sam.of_size(**_arguments(variant), **variant.config.get("shape", {})).eval()
        return (Encoder if graph.name == "encoder" else Decoder)(sam).eval()

    def small(self, variant: Variant) -> Variant:
        """A frame of 128 pixels, and two narrow blocks, one of each kind of attention, in place of twelve."""
        return variant.configured(side=min(128, int(variant.config["side"])), shape=SMALL)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The part of the network that ``graph`` is of, with the published weights."""
        require("torch", needed_for="making the engine of sam-med2d", install="omlab-sam-med2d[convert]")
        from omlab_sam_med2d.checkpoint import load
        from omlab_sam_med2d.network import Decoder, Encoder

        (asset,) = variant.weights
        sam = load(files["net"], asset, **_arguments(variant))
        return (Encoder if graph.name == "encoder" else Decoder)(sam).eval()


def _arguments(variant: Variant) -> dict[str, Any]:
    config = variant.config
    return {"size": config["size"], "img_size": int(config["side"]), "adapter": bool(config["adapter"])}
