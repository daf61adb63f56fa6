"""Supervised fine-tuning of language models: loss on the answer, and low-rank adapters. Needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab.errors import UsageError

#: Label of a token that is read and not learnt.
IGNORED = -100


def causal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of every token given those before it.

    Parameters
    ----------
    logits : [batch, length, vocabulary].
    labels : [batch, length] ids, :data:`IGNORED` where nothing is learnt; the same columns as the input's.
    """
    ahead = logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(ahead, labels[:, 1:].flatten(), ignore_index=IGNORED)


def batched(rows: Iterable[tuple[list[int], list[int]]], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [batch, length] of rows (ids, labels), padded on the right."""
    found = list(rows)
    longest = max(len(ids) for ids, _ in found)
    ids = torch.full((len(found), longest), padding)
    labels = torch.full((len(found), longest), IGNORED)
    mask = torch.zeros((len(found), longest), dtype=torch.int64)
    for number, (row, learnt) in enumerate(found):
        ids[number, : len(row)] = torch.tensor(row)
        labels[number, : len(learnt)] = torch.tensor(learnt)
        mask[number, : len(row)] = 1
    return ids, mask, labels


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
        if name in wanted and isinstance(child, nn.Linear)
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
