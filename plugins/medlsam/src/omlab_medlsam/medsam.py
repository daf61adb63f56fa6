"""MedSAM as a model of omlab: a picture and a box to a mask."""

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

SAM_SOURCES = (*SOURCES, "omlab_medlsam.checkpoint")


class MedSam(SegmentAnything):
    """The model ``medsam``."""

    sources = SAM_SOURCES

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The part of the network that ``graph`` is of, as constructed."""
        return untrained_part(graph, variant.config)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The part of the network that ``graph`` is of, with the published weights."""
        return trained_part(graph, variant.config, files, self.card.name)

    def small(self, variant: Variant) -> Variant:
        """A frame of 128 pixels, and two narrow blocks of the encoder."""
        return variant.configured(side=128, shape=SMALL)


def untrained_part(graph: Graph, config: Mapping[str, Any]) -> torch.nn.Module:
    """``encoder`` or ``decoder`` of Segment Anything of ``size`` for frames of ``side``, as constructed; ``shape`` has
    arguments of the image encoder in place of those of the size."""
    from omlab_sdk.networks.sam.network import SIZES, Decoder, Encoder, Sam

    size = {**SIZES[str(config["size"])], **config.get("shape", {})}
    sam = Sam(img_size=int(config["side"]), **size).eval()
    return (Encoder if graph.name == "encoder" else Decoder)(sam).eval()


def trained_part(
    graph: Graph, config: Mapping[str, Any], files: Mapping[str, Path], name: str
) -> torch.nn.Module:  # fmt: skip
    """Likewise, with the weights of the file ``sam``."""
    require("torch", needed_for=f"making the engine of {name}", install="omlab-medlsam[convert]")
    from omlab_medlsam.checkpoint import load_sam
    from omlab_sdk.networks.sam.network import Decoder, Encoder

    sam = load_sam(files["sam"], size=str(config["size"]), side=int(config["side"]))
    return (Encoder if graph.name == "encoder" else Decoder)(sam).eval()
