"""What a plugin implements to contribute a way of adapting models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import AdapterCard, ModelCard, Variant
from omlab.progress import Listener, silent

if TYPE_CHECKING:
    from omlab.dataset import BoundDataset
    from omlab.loading import LoadedModel
    from omlab.model import Model


class Adapter:
    """Base of every contributed adapter: (model, dataset, options) to a model directory, and back to a model.

    A model directory holds ``omlab.toml`` (a ``[[model]]`` card and a ``[adapted]`` table that names adapter, base
    model and base variant), the trained tensors as safetensors, and ``report.json``.
    """

    def __init__(self, card: AdapterCard) -> None:
        self.card = card

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Train, write the tensors into ``folder`` and return what differs from the base's card as a manifest
        table (title, summary, task, outputs, labels ...), with a ``report`` entry of what was measured."""
        raise TypeError(f"{type(self).__name__} must define adapt()")

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        raise TypeError(f"{type(self).__name__} must define model()")
