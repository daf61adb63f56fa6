"""Endo-FM, models of omlab for endoscopy videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import ModelCard
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    if card.name == "endo-fm-seg":
        from omlab_endo_fm.segmenter import EndoFmSegmenter

        return EndoFmSegmenter(card)
    if card.name == "endo-fm-det":
        from omlab_endo_fm.detector import EndoFmDetector

        return EndoFmDetector(card)
    from omlab_endo_fm.encoder import EndoFm

    return EndoFm(card)
