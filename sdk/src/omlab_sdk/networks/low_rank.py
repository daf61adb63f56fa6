"""Low-rank adapters of linear layers (Hu et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from omlab.errors import UsageError


class LowRank(nn.Module):
    """A frozen linear layer with a learnt product of two thin matrices beside it (Hu et al. 2022); it begins as the
    layer alone.

    Parameters
    ----------
    rank, alpha : the product is scaled by ``alpha / rank``.
    dropout : of what goes into the product.
    """

    def __init__(self, layer: nn.Linear, rank: int = 8, alpha: float = 32.0, dropout: float = 0.05) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        beside: Tensor = self.dropout(x) @ self.down.T @ self.up.T
        out: Tensor = self.layer(x)
        return out + self.scale * beside

    def merged(self) -> nn.Linear:
        """The layer with the product added to its weight."""
        with torch.no_grad():
            self.layer.weight += (self.scale * self.up @ self.down).to(self.layer.weight.dtype)
        return self.layer


def add_low_rank(network: nn.Module, targets: Iterable[str], **settings: float) -> int:
    """Put :class:`LowRank` around every linear layer whose last name is in ``targets`` and freeze all else; gives how
    many.

    Raises :class:`omlab.errors.UsageError` where no layer has such a name.
    """
    wanted = set(targets)
    network.requires_grad_(False)
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        # torch's own attention reads the weight of its projection and would pass by what is around it
        if name in wanted and isinstance(child, nn.Linear) and not isinstance(parent, nn.MultiheadAttention)
    ]
    if not found:
        raise UsageError(f"the network has no linear layer called {' or '.join(sorted(wanted))}")
    for parent, name, child in found:
        setattr(parent, name, LowRank(child, **settings))  # type: ignore[arg-type]
    return len(found)


def merge_low_rank(network: nn.Module) -> int:
    """Put the layers back with what was learnt; the state dict has its old names again. Gives how many."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, LowRank)
    ]
    for parent, name, child in found:
        setattr(parent, name, child.merged())
    return len(found)


def low_rank_names(network: nn.Module) -> list[str]:
    """Parameters of the thin matrices."""
    layers = [name for name, module in network.named_modules() if isinstance(module, LowRank)]
    return [f"{name}.{part}" for name in layers for part in ("down", "up")]
