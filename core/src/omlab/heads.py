"""Models that are a small head on the embedding of a base model, whose network and engines they share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cards import ModelCard, Variant
from omlab.cases import Case
from omlab.errors import EngineError, WeightsError
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.loading import options_of
from omlab.model import Context, Model
from omlab.results import Classification, Embedding, Result

if TYPE_CHECKING:
    import torch

EXPORTED = "classifier"
HEAD = "head.safetensors"


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Element by element."""
    return (1.0 / (1.0 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)


class HeadModel(Model):
    """Classes from the frozen embedding of ``base``. Shares the base's graphs, so no engine is built twice.

    A subclass says with :meth:`logits` and :meth:`module` what the head computes, and with :meth:`shapes` what its file
    holds. The soft-max of the logits (the sigmoid where classes do not exclude each other) are the probabilities.
    """

    def __init__(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> None:
        super().__init__(card)
        self.base, self.base_variant, self.head = base, base_variant, folder / HEAD
        self.exclusive = bool(card.variants[0].config.get("exclusive", True))
        self._tensors: dict[str, NDArray[np.float32]] | None = None

    def shapes(self, found: Mapping[str, NDArray[np.generic]]) -> bool:
        """Are these the tensors of such a head for the classes of the card?"""
        raise TypeError(f"{type(self).__name__} must define shapes()")

    def features(self) -> int:
        """Length of the embedding that the head takes."""
        raise TypeError(f"{type(self).__name__} must define features()")

    def logits(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """[classes] of an embedding [features]."""
        raise TypeError(f"{type(self).__name__} must define logits()")

    def module(self) -> torch.nn.Module:
        """The same as :meth:`logits` in torch, [batch, features] to [batch, classes], for the export."""
        raise TypeError(f"{type(self).__name__} must define module()")

    @property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """What the head's file holds. Raises :class:`omlab.errors.WeightsError`."""
        if self._tensors is None:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                found = load_file(self.head)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{self.head} cannot be read: {error}", remedy="Make the model again") from None
            if not self.shapes(found):
                held = {name: tensor.shape for name, tensor in found.items()}
                raise WeightsError(
                    f"{self.head} is no head of {len(self.card.labels)} classes: it holds {held}",
                    remedy="Make the model again",
                )
            self._tensors = found
        return self._tensors

    def graph_owner(self, variant: Variant) -> tuple[Model, Variant]:
        """The base, whose network is left as it is."""
        return self.base.graph_owner(self.base_variant)

    def own_weights(self, variant: Variant) -> dict[str, Path]:
        """The head, on which results depend. Raises :class:`omlab.errors.WeightsError`."""
        if not self.head.is_file():
            raise WeightsError(f"{self.head} cannot be read: it is missing", remedy="Make the model again")
        return {"head": self.head}

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """Those of the base."""
        return self.base.graphs(self.base_variant)

    def exports(self, variant: Variant) -> tuple[Graph, ...]:
        """One graph from the base's input to class logits. Raises :class:`omlab.errors.EngineError` where the base
        has several graphs, so that no single one gives the embedding."""
        graphs = self.graphs(variant)
        if len(graphs) != 1 or len(graphs[0].outputs) != 1:
            raise EngineError(
                f"'{self.base.card.name}' has {len(graphs)} graphs; a head can only be joined to a single one",
                remedy=f"Export the base model and apply {HEAD} to its embedding",
            )
        output = graphs[0].outputs[0]
        logits = TensorSpec("logits", "float32", (*output.shape[:-1], len(self.card.labels)), ranges=output.ranges)
        return (attrs.evolve(graphs[0], name=EXPORTED, outputs=(logits,), judge=Judge.LOGITS),)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The base's network; with the head behind it for the exported graph."""
        import torch

        own = self.graphs(variant)[0]
        network = self.base.network(own if graph.name == EXPORTED else graph, self.base_variant, files)
        return torch.nn.Sequential(network, self.module()).eval() if graph.name == EXPORTED else network

    def predict(self, case: Case, context: Context) -> Result:
        """Probabilities of the classes."""
        options = options_of(self.base.card, {})
        result = self.base.predict(case, attrs.evolve(context, variant=self.base_variant, options=options))
        if not isinstance(result, Embedding):
            raise EngineError(f"'{self.base.card.name}' gave {result.kind}, an embedding was expected")
        self.tensors  # noqa: B018 (a damaged head is told before a wrong length)
        if result.vector.shape != (self.features(),):
            raise WeightsError(
                f"{self.head} takes {self.features()} features, '{self.base.card.name}' gives {result.vector.shape}",
                remedy="The base model has changed: make the model again",
            )
        logits = self.logits(np.asarray(result.vector, np.float32))
        names = tuple(label.name for label in self.card.labels)
        probabilities = softmax(logits) if self.exclusive else sigmoid(logits)
        return Classification(classes=names, probabilities=probabilities, exclusive=self.exclusive)


def classifier_table(base_card: ModelCard, how: str, classes: tuple[str, ...], exclusive: bool) -> dict[str, object]:
    """What the card of a classifier made from a base has of its own, as an adapter returns it."""
    return {
        "title": f"{base_card.title or base_card.name}, {how}",
        "summary": f"Classifies {', '.join(classes)}: {base_card.name}, {how}",
        "task": ["classification"],
        "outputs": ["classification"],
        "labels": [{"value": i, "name": name} for i, name in enumerate(classes)],
        "variants": [{"name": "adapted", "config": {"exclusive": exclusive}}],
    }
