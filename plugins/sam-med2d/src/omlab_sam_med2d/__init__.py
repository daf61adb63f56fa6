"""SAM-Med2D, a model of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import DatasetCard, ModelCard
    from omlab.dataset import Dataset
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab_sam_med2d.model import SamMed2D

    return SamMed2D(card)


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_sam_med2d.dataset import MaskedPictures

    return MaskedPictures(card)
