"""Parts of networks, found by name or by what they do; heads for classes. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from omlab.errors import UsageError
from omlab.graphs import Graph, Judge

#: Standard deviation of the weights of a new head, as RETFound's recipe has it.
HEAD_STD = 2e-5
#: Bias of a class that had no training case: it is never predicted.
NEVER = -1e4


class Head(nn.Linear):
    """A linear head for classes, by which it is told from other layers; it begins almost at zero."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        nn.init.trunc_normal_(self.weight, std=HEAD_STD)
        nn.init.zeros_(self.bias)


class Headed(nn.Module):
    """A network that embeds, and a linear head for classes: features [batch, width] to logits [batch, classes]."""

    def __init__(self, network: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = Head(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.network(image)))


def plan_head(network: nn.Module, graph: Graph, name: str) -> dict[str, Any]:
    """Where the head for new classes goes: ``head`` is the path of the linear layer that gives the network's logits, or
    empty where the network embeds and one is put behind it; ``features`` is what it takes.

    Raises
    ------
    UsageError
        The output is no feature vector, or no linear layer gives the logits.
    """
    size = {n: max(2, graph.inputs[0].ranges.get(n, (1, 1, 1))[1]) for n in graph.inputs[0].symbolic}
    example = torch.linspace(-1, 1, int(torch.tensor(graph.inputs[0].concrete(size)).prod()))
    example = example.reshape(graph.inputs[0].concrete(size))
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, path=path: found.update({path: out}))
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            output = network.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"the network of '{name}' gives {shape}; a head for classes needs [batch, features]")
    if graph.judge_of(graph.outputs[0].name) is not Judge.LOGITS:
        return {"head": "", "features": output.shape[1]}
    heads = [path for path, value in found.items() if value.shape == output.shape and torch.equal(value, output)]
    if not heads:
        raise UsageError(
            f"'{name}' classifies, but no linear layer of its network gives the logits, so its head cannot be replaced",
            remedy="Use a variant that embeds (omlab info shows them)",
        )
    return {"head": heads[-1], "features": cast(nn.Linear, network.get_submodule(heads[-1])).in_features}


def with_head(network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """The network with a new head for ``plan["classes"]``, placed by :func:`plan_head`."""
    if not plan["head"]:
        return Headed(network, plan["features"], plan["classes"])
    parent, _, last = plan["head"].rpartition(".")
    setattr(network.get_submodule(parent), last, Head(plan["features"], plan["classes"]))
    return network


def head_of(network: nn.Module, plan: Mapping[str, Any]) -> nn.Linear:
    """The head that :func:`with_head` made."""
    return cast(nn.Linear, network.get_submodule(plan["head"] or "head"))


def head_names(network: nn.Module) -> list[str]:
    """Parameters of the head."""
    heads = [name for name, module in network.named_modules() if isinstance(module, Head)]
    return [f"{name}.{part}" for name in heads for part in ("weight", "bias")]


def transformer_of(network: nn.Module, name: str) -> nn.Module:
    """The part of a network that has ``patch_embed`` and a list ``blocks``.

    Raises
    ------
    UsageError
        There is none.
    """
    for module in network.modules():
        if hasattr(module, "patch_embed") and isinstance(getattr(module, "blocks", None), nn.ModuleList):
            return module
    raise UsageError(
        f"the network of '{name}' has no part with 'patch_embed' and a list 'blocks', by which a vision transformer is "
        "known",
        remedy="The adapter fine-tune takes every network; authors can give a transformer properties of these names",
    )


def set_drop_path(network: nn.Module, greatest: float) -> int:
    """Let blocks leave branches out while training, the deeper the more often, up to ``greatest``; gives how many
    blocks can do so."""
    for module in network.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            count = 0
            for place, block in enumerate(blocks):
                drops = [m for m in block.modules() if type(m).__name__ == "DropPath" and hasattr(m, "rate")]
                for drop in drops:
                    drop.rate = greatest * place / max(1, len(blocks) - 1)  # type: ignore[assignment]
                count += bool(drops)
            return count
    return 0


def tokens_of(transformer: nn.Module) -> int:
    """Tokens in front of the patches."""
    return 1 if getattr(transformer, "cls_token", None) is not None else 0
