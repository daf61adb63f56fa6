"""The fine-tuned model: the base's pipeline with a network of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omlab.cards import ModelCard, Variant
from omlab.cases import Case
from omlab.errors import WeightsError, require
from omlab.graphs import Graph
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Result

if TYPE_CHECKING:
    import torch

    from omlab_sdk.segmenters import Recipe

NETWORK = "network.safetensors"
_ID = "network"


class TunedSegmenter(Model):
    """A segmenter of the structures of its card. Needs none of the base's weights."""

    def __init__(self, card: ModelCard, base: Model, folder: Path) -> None:
        super().__init__(card)
        # The base's pipeline takes what it segments from its card.
        self.inner = copy.copy(base.inner if isinstance(base, TunedSegmenter) else base)
        self.inner.card = card
        self.path = folder / NETWORK

    def own_weights(self, variant: Variant) -> dict[str, Path]:
        """The trained network."""
        return {_ID: self.path}

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """Those of the base, with the sizes of the fine-tuned network."""
        return self.inner.graphs(variant)

    def exports(self, variant: Variant) -> tuple[Graph, ...]:
        """Those of the base, likewise."""
        return self.inner.exports(variant)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The trained network of ``graph``. Raises :class:`omlab.errors.WeightsError` for a file that is not its."""
        require("torch", needed_for=f"making the engine of {self.card.name}", install="omlab-segmenter-tuning[train]")
        return self.inner.tuned(graph, variant, self.state(files))  # type: ignore[attr-defined,no-any-return]

    def state(self, files: Mapping[str, Path]) -> dict[str, torch.Tensor]:
        """The trained tensors."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(files[_ID])
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{files[_ID]} cannot be read: {error}", remedy="Make the model again") from None

    def recipe(
        self, variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Any = None, **changes: Any
    ) -> Recipe:
        """How to go on learning, beginning with what was learnt."""
        learnt = self.state(files) if state is None else state
        return self.inner.recipe(variant, {}, outputs, state=learnt, **changes)  # type: ignore[attr-defined,no-any-return]

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The base's."""
        return self.inner.tuned(graph, variant, state)  # type: ignore[attr-defined,no-any-return]

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """The base's."""
        return self.inner.examples(graph, variant)

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """As the base does."""
        self.inner.validate(options, prompts)

    def predict(self, case: Case, context: Context) -> Result:
        """As the base does."""
        return self.inner.predict(case, context)
