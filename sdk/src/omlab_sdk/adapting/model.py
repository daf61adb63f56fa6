"""Adapted models whose network differs from the base's: run, exported and tuned like any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from omlab.cards import ModelCard, Variant
from omlab.cases import Case
from omlab.errors import WeightsError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.heads import sigmoid, softmax
from omlab.loading import files_of, options_of
from omlab.model import Context, Model
from omlab.results import Classification, Result
from omlab_sdk.adapting.capture import only_graph, tensor_of

if TYPE_CHECKING:
    import torch

    from omlab_sdk.adapting.trained import TrainedAdapter

WEIGHTS = "adapted.safetensors"
GRAPH = "classifier"


class AdaptedModel(Model):
    """The model of a directory that a :class:`omlab_sdk.adapting.trained.TrainedAdapter` filled.

    It prepares a case as its base does. As a classifier (``config["head"]`` is there) it has one graph from the base's
    input to logits; else the graph of the base with other weights.
    """

    def __init__(
        self, card: ModelCard, base: Model, base_variant: Variant, folder: Path, adapter: TrainedAdapter
    ) -> None:
        super().__init__(card)
        self.base, self.base_variant, self.folder, self.adapter = base, base_variant, folder, adapter

    @property
    def config(self) -> Mapping[str, Any]:
        """What the adapter needs to put the network together."""
        return self.card.variants[0].config

    @property
    def classifies(self) -> bool:
        """Has a head of its own."""
        return "head" in self.config

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``classifier``: the base's input to logits; or the base's graph."""
        graph = only_graph(self.base, self.base_variant)
        own = attrs.evolve(
            graph,
            sources=(*graph.sources, *self.adapter.sources),
            config={**graph.config, "adapted": {"adapter": self.adapter.card.name, **self.config}},
        )
        if not self.classifies:
            return (own,)
        batch = graph.inputs[0].shape[0]
        logits = TensorSpec(
            "logits", "float32", (batch, len(self.card.labels)), "batch class", graph.inputs[0].ranges
        )  # fmt: skip
        return (attrs.evolve(own, name=GRAPH, outputs=(logits,), judge=Judge.LOGITS, tolerances={}),)

    def asset_owner(self, variant: Variant) -> tuple[ModelCard, Variant]:
        """The base, where a part of its network is left as it was."""
        if not self.adapter.needs_base_weights:
            return self.card, variant
        return self.base.asset_owner(self.base_variant)

    def base_weights(self, variant: Variant) -> dict[str, Path]:
        """Files of the base directory, where a part of its network is left as it was."""
        if not self.adapter.needs_base_weights:
            return {}
        return files_of(self.base, self.base_variant)

    def own_weights(self, variant: Variant) -> dict[str, Path]:
        """What was trained."""
        return {"adapted": self.folder / WEIGHTS}

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """Those of the base: the input is the same."""
        return self.base.examples(only_graph(self.base, self.base_variant), self.base_variant)

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The base's untrained network, put together like this one."""
        network = self.base.untrained(only_graph(self.base, self.base_variant), self.base_variant)
        return self.adapter.finish(self.adapter.assemble(network, self.config)).eval()

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The base's network with what was trained. Raises :class:`omlab.errors.WeightsError`."""
        for module in ("torch", "safetensors"):
            require(module, needed_for=f"making the engine of {self.card.name}", install="omlab-sdk[torch]")
        from omlab_sdk.checkpoints import read_checkpoint
        from omlab_sdk.training.state import put_back

        base_graph = only_graph(self.base, self.base_variant)
        if self.adapter.needs_base_weights:
            inner = {**files, **{n.removeprefix("base-"): p for n, p in files.items() if n.startswith("base-")}}
            network = self.base.network(base_graph, self.base_variant, inner)
        else:
            network = self.base.untrained(base_graph, self.base_variant)
        network = self.adapter.assemble(network, self.config)
        path = files["adapted"]
        state = read_checkpoint(path)
        own = self.adapter.stored(network)
        wrong = sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]
        if wrong:
            raise WeightsError(
                f"{path} does not fit the network of '{self.base.card.name}': first '{wrong[0]}'",
                remedy="The base model has changed: make the model again",
            )
        put_back(network, state)
        return self.adapter.finish(network).eval()

    def predict(self, case: Case, context: Context) -> Result:
        """Probabilities of the classes; without a head what the base answers."""
        if not self.classifies:
            options = options_of(self.base.card, {})
            return self.base.predict(case, attrs.evolve(context, variant=self.base_variant, options=options))
        with context.stage("prepare"):
            # the base's own stages would count its recorder as the network
            tensor = tensor_of(self.base, self.base_variant, case, attrs.evolve(context, stages={}))
        graph = self.graphs(context.variant)[0]
        with context.stage("network"):
            logits = context.engines[GRAPH]({graph.inputs[0].name: tensor[None]})["logits"][0]
        exclusive = bool(self.config.get("exclusive", True))
        return Classification(
            classes=tuple(label.name for label in self.card.labels),
            probabilities=softmax(logits) if exclusive else sigmoid(logits), exclusive=exclusive,
        )  # fmt: skip
