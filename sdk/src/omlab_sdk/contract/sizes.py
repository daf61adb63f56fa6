"""Networks as outlines: built and called with tensors that have shapes and no numbers.

An outline takes no memory and next to no time, so that a network of billions of parameters is looked at in a second.
"""

from __future__ import annotations

from typing import Any

import attrs

from omlab.cards import ModelCard, Variant
from omlab.graphs import Graph, TensorSpec
from omlab.model import Model
from omlab.vocabulary import Kind
from omlab_sdk.contract.base import Broken, Skipped, Subject


@attrs.frozen
class Outline:
    """Of one graph's network.

    Attributes
    ----------
    parameters : name and shape -> how many numbers.
    outputs : shape and dtype of each, in order.
    """

    parameters: dict[str, int]
    outputs: tuple[tuple[tuple[int, ...], str], ...]


class NoOutline(Exception):
    """The network looks at numbers while it is built or called, or cannot be built."""


def outline(model: Model, graph: Graph, variant: Variant) -> Outline:
    """The outline of ``graph``'s untrained network. Raises :class:`NoOutline`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Numbers(TorchDispatchMode):
        """While weights are drawn: a number that is asked for is 0, a truth False, so that drawing again ends."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                return {torch.bool: False}.get(args[0].dtype, 0.0 if args[0].is_floating_point() else 0)
            return func(*args, **(kwargs or {}))

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            with Numbers():
                network = model.untrained(graph, variant)
            parameters = {f"{name} {tuple(p.shape)}": p.numel() for name, p in network.named_parameters()}
            # A size of 1 hides what belongs together.
            sizes = {n: max(2, s.ranges.get(n, (1, 2, 2))[1]) for s in graph.inputs for n in s.symbolic}
            found = network(
                *(torch.zeros(spec.concrete(sizes), dtype=getattr(torch, spec.dtype)) for spec in graph.inputs)
            )
    except Exception as error:  # a stranger's code: whatever it raises, there is no outline
        raise NoOutline(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}") from error
    tensors = (found,) if isinstance(found, torch.Tensor) else tuple(found)
    return Outline(parameters, tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors))


def outlined(subject: Subject, model: Model, graph: Graph, variant: Variant) -> Outline:
    """Likewise, made once for each graph. Raises :class:`NoOutline`."""
    key = f"{model.card.name}/{graph.digest()}"
    if key not in subject.outlines:
        try:
            subject.outlines[key] = outline(model, graph, variant)
        except NoOutline as error:
            subject.outlines[key] = error
    found = subject.outlines[key]
    if isinstance(found, NoOutline):
        raise found
    return found  # type: ignore[no-any-return]


def parameters(subject: Subject, model: Model, variant: Variant) -> int | None:
    """How many parameters all graphs of ``variant`` have together, ``None`` where it cannot be told."""
    found: dict[str, int] = {}
    try:
        for graph in model.graphs(variant):
            found |= outlined(subject, model, graph, variant).parameters
    except NoOutline:
        return None
    return sum(found.values())


def sizes(subject: Subject) -> str:
    """The network of every variant can be built at its published size and gives the shapes that its graphs declare."""
    told: dict[str, int] = {}
    blind: list[str] = []
    for card in subject.cards(Kind.MODEL):
        assert isinstance(card, ModelCard)
        model: Model = subject.registry.load(Kind.MODEL, card.name)
        for variant in card.variants:
            if subject.variants and variant.name not in subject.variants:
                continue
            for graph in {g.name: g for g in (*model.exports(variant), *model.graphs(variant))}.values():
                where = f"{card.name}/{variant.name}, graph '{graph.name}'"
                try:
                    found = outlined(subject, model, graph, variant)
                except NoOutline as error:
                    blind.append(f"{where}: {error}")
                    continue
                _compare(graph, found, where)
                told[f"{card.name}/{graph.digest()}"] = sum(found.parameters.values())
    if not told:
        raise Skipped(f"no outline of {blind[0]}" if blind else "there is no network")
    without = f"; no outline of {len(blind)}, first {blind[0]}" if blind else ""
    largest = millions(max(told.values()))
    return f"{len(told)} networks of up to {largest} give the shapes that are declared{without}"


def _compare(graph: Graph, found: Outline, where: str) -> None:
    if len(found.outputs) != len(graph.outputs):
        raise Broken(f"{where}: gives {len(found.outputs)} outputs, declared are {len(graph.outputs)}")
    for spec, (shape, dtype) in zip(graph.outputs, found.outputs, strict=True):
        if dtype != spec.dtype or not _fits(spec, shape):
            raise Broken(
                f"{where}: output '{spec.name}' is {dtype} {list(shape)}, declared {spec.dtype} {list(spec.shape)}",
                "Correct Model.graphs(), or the network",
            )


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(spec.shape) and all(
        isinstance(declared, str) or declared == size for declared, size in zip(spec.shape, shape, strict=True)
    )


def millions(count: int) -> str:
    """``"0.21 million"``, ``"303 million"``: numbers of a network for people."""
    if count >= 1e9:
        return f"{count / 1e9:.3g} billion parameters"
    return f"{count / 1e6:.3g} million parameters"
