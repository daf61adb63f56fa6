"""The tensors that a model's network takes of a case, caught where its ``predict`` hands them to the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case
from omlab.engines.base import EngineInfo
from omlab.engines.checks import check_inputs
from omlab.errors import UsageError
from omlab.graphs import Graph, TensorSpec
from omlab.loading import options_of
from omlab.model import Context, Model
from omlab.vocabulary import Precision


class _Recorder:
    """An engine that keeps what it is given. Its answer has the right shape and no meaning: small numbers that are
    neither equal nor zero, so that a pipeline which divides by their length goes on."""

    info = EngineInfo("recorder", "1", Precision.FLOAT32, "cpu")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.calls: list[dict[str, NDArray[Any]]] = []

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        checked = {name: np.array(array) for name, array in check_inputs(self.graph, inputs).items()}
        self.calls.append(checked)
        sizes = {
            dimension: size
            for spec in self.graph.inputs
            for dimension, size in zip(spec.shape, checked[spec.name].shape, strict=True)
            if isinstance(dimension, str)
        }
        return {spec.name: _numbers(spec, sizes) for spec in self.graph.outputs}


def _numbers(spec: TensorSpec, sizes: Mapping[str, int]) -> NDArray[Any]:
    shape = spec.concrete(sizes)
    return np.linspace(0.1, 1.0, int(np.prod(shape))).reshape(shape).astype(spec.dtype)


class _Engines(Mapping[str, Any]):
    def __init__(self, graphs: tuple[Graph, ...]) -> None:
        self._engines = {graph.name: _Recorder(graph) for graph in graphs}

    def __getitem__(self, name: str) -> _Recorder:
        return self._engines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)


def only_graph(model: Model, variant: Variant) -> Graph:
    """The graph of a model that can be trained as it is: the only one, with one input and one output whose first axes
    are the batch. Raises :class:`omlab.errors.UsageError` for another model."""
    graphs = model.graphs(variant)
    name = model.card.name
    if len(graphs) != 1 or len(graphs[0].inputs) != 1 or len(graphs[0].outputs) != 1:
        parts = ", ".join(f"{g.name} ({len(g.inputs)} in, {len(g.outputs)} out)" for g in graphs)
        raise UsageError(
            f"'{name}' cannot be trained by this adapter: it needs one graph with one input and one output, "
            f"the model has {parts}",
            remedy="Adapters on the frozen embedding take every embedder: linear-probe, nearest-neighbours, prototypes",
        )
    first, last = graphs[0].inputs[0].shape[0], graphs[0].outputs[0].shape[0]
    if not isinstance(first, str) or first != last:
        raise UsageError(
            f"'{name}' cannot be trained in batches: the first axis of its graph '{graphs[0].name}' is no batch"
        )
    return graphs[0]


def tensor_of(model: Model, variant: Variant, case: Case, context: Context | None = None) -> NDArray[np.float32]:
    """What the network of ``model`` takes of ``case``, without the batch axis.

    Parameters
    ----------
    context : of the run that this is a part of: its stages, progress, files and way of being stopped.

    Raises
    ------
    UsageError
        The model looks at a case several times (crops, clips), which one tensor cannot stand for.
    OmlabError
        The model refuses the case.
    """
    graph = only_graph(model, variant)
    engines = _Engines((graph,))
    options = options_of(model.card, {})
    if context is None:
        context = Context(variant=variant, engines=engines, options=options, what=case.name)
    else:
        context = attrs.evolve(context, variant=variant, engines=engines, options=options, prompts=None)
    model.predict(case, context)
    calls = engines[graph.name].calls
    arrays = [call[graph.inputs[0].name] for call in calls]
    if len(arrays) != 1 or len(arrays[0]) != 1:
        looks = sum(len(array) for array in arrays)
        raise UsageError(
            f"'{model.card.name}' looks {looks} times at {case.name}; an adapter that trains the network needs models "
            "that look once",
            remedy="Adapters on the frozen embedding take every embedder: linear-probe, nearest-neighbours, prototypes",
        )
    return arrays[0][0]
