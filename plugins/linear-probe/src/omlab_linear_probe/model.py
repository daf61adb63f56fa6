"""The adapted model: the base's pipeline and engine, then one affine map in NumPy."""

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


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


class LinearProbeModel(Model):
    """Classes from the frozen embedding of ``base``. Shares the base's graphs, so no engine is built twice."""

    def __init__(self, card: ModelCard, base: Model, base_variant: Variant, head: Path) -> None:
        super().__init__(card)
        self.base, self.base_variant, self.head = base, base_variant, head
        self._tensors: dict[str, NDArray[np.float32]] | None = None

    @property
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """``weight`` [classes, features] and ``bias`` [classes]. Raises :class:`omlab.errors.WeightsError`."""
        if self._tensors is None:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                found = load_file(self.head)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{self.head} cannot be read: {error}", remedy="Make the model again") from None
            classes = len(self.card.labels)
            shapes = {name: tensor.shape for name, tensor in found.items()}
            if set(found) != {"weight", "bias"} or len(found["weight"]) != classes or found["bias"].shape != (classes,):
                raise WeightsError(
                    f"{self.head} is no head of {classes} classes: it holds {shapes}", remedy="Make the model again"
                )
            self._tensors = found
        return self._tensors

    def graph_owner(self, variant: Variant) -> tuple[Model, Variant]:
        """The base, whose network is left as it is."""
        return self.base, self.base_variant

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
                remedy="Export the base model and apply head.safetensors to its embedding",
            )
        output = graphs[0].outputs[0]
        logits = TensorSpec("logits", "float32", (*output.shape[:-1], len(self.card.labels)), ranges=output.ranges)
        return (attrs.evolve(graphs[0], name=EXPORTED, outputs=(logits,), judge=Judge.LOGITS),)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The base's network; with the head behind it for the exported graph."""
        import torch

        own = self.graphs(variant)[0]
        network = self.base.network(own if graph.name == EXPORTED else graph, self.base_variant, files)
        if graph.name != EXPORTED:
            return network
        weight, bias = torch.from_numpy(self.tensors["weight"]), torch.from_numpy(self.tensors["bias"])
        head = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        return torch.nn.Sequential(network, head).eval()

    def predict(self, case: Case, context: Context) -> Result:
        """Probabilities of the classes."""
        options = options_of(self.base.card, {})
        result = self.base.predict(case, attrs.evolve(context, variant=self.base_variant, options=options))
        if not isinstance(result, Embedding):
            raise EngineError(f"'{self.base.card.name}' gave {result.kind}, an embedding was expected")
        weight, bias = self.tensors["weight"], self.tensors["bias"]
        if result.vector.shape != (weight.shape[1],):
            raise WeightsError(
                f"{self.head} takes {weight.shape[1]} features, '{self.base.card.name}' gives {result.vector.shape}",
                remedy="The base model has changed: make the model again",
            )
        names = tuple(label.name for label in self.card.labels)
        return Classification(classes=names, probabilities=softmax(result.vector @ weight.T + bias))
