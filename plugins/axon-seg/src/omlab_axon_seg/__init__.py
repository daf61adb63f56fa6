"""Axon-Seg, a model of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import ModelCard
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab_axon_seg.model import AxonSeg

    return AxonSeg(card)
