"""CLAM's slide classifiers for omlab: models, their training, and folders of features as a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.adapter import Adapter
    from omlab.cards import AdapterCard, DatasetCard, ModelCard
    from omlab.dataset import Dataset
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab_clam.model import ClamModel

    return ClamModel(card)


@hookimpl
def omlab_adapter(card: AdapterCard) -> Adapter:
    from omlab_clam.adapter import SlideClassifier

    return SlideClassifier(card)


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_clam.dataset import FeatureFolder

    return FeatureFolder(card)
