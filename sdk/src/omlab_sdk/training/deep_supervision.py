"""nnU-Net's loss (Isensee et al., Nature Methods 2021): soft Dice and cross-entropy over the outputs of several levels.

Logits are [batch, classes, ...], labels [batch, 1, ...] with the same axes after them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab.inference.resampling import nearest

SMOOTH = 1e-5


class SoftDice(nn.Module):
    """Minus the mean soft Dice of the classes but the background.

    Logits and labels to a number. ``batch``: overlap is counted over the whole batch; else for each case, and averaged.
    """

    def __init__(self, *, batch: bool = True, smooth: float = SMOOTH) -> None:
        super().__init__()
        self.batch, self.smooth = batch, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, dim=1)
        target = target.long()
        # A voxel counts for one class: with its probability of that class alone no map of the truth is needed, which
        # would be as large as the logits. The sums are long: double precision.
        own = probabilities.gather(1, target).flatten(1).double()
        places = target.flatten(1)
        empty = own.new_zeros(logits.shape[:2])
        hits = empty.scatter_add(1, places, own)
        truth = empty.scatter_add(1, places, torch.ones_like(own))
        found = probabilities.flatten(2).sum(2, dtype=torch.float64)
        if self.batch:
            hits, truth, found = hits.sum(0), truth.sum(0), found.sum(0)
        dice = (2 * hits + self.smooth) / (found + truth + self.smooth + 1e-8)
        return -dice[..., 1:].mean().to(logits.dtype)


class DiceAndCrossEntropy(nn.Module):
    """:class:`SoftDice` plus cross-entropy, the mean over voxels."""

    def __init__(self, *, batch: bool = True) -> None:
        super().__init__()
        self.dice = SoftDice(batch=batch)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The second term."""
        return F.cross_entropy(logits, target[:, 0].long())

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.dice(logits, target) + self.cross_entropy(logits, target)


def output_weights(count: int) -> tuple[float, ...]:
    """Weight of each of ``count`` outputs, finest first: halved from one to the next, the coarsest 0, summing to 1."""
    weights = [0.5**n for n in range(count)]
    if count > 1:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def labels_at(target: Tensor, size: Sequence[int]) -> Tensor:
    """Labels on a grid of another ``size`` over the same field, by the nearest voxel."""
    for axis, n in enumerate(size, start=2):
        if target.shape[axis] != n:
            places = torch.from_numpy(nearest(target.shape[axis], int(n))).to(target.device)
            target = target.index_select(axis, places)
    return target


class DeepSupervision(nn.Module):
    """Weighted sum of a loss over a network's outputs, finest first, each with the labels at its size.

    Parameters
    ----------
    loss : :class:`DiceAndCrossEntropy` unless told otherwise.
    weights : of the outputs; :func:`output_weights` unless told otherwise.
    """

    def __init__(self, loss: nn.Module | None = None, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss or DiceAndCrossEntropy()
        self.weights = None if weights is None else tuple(weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Logits, of one output or several, and the labels at the size of the finest to a number."""
        given = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        weights = self.weights or output_weights(len(given))
        terms = [
            weight * self.loss(output, labels_at(target, output.shape[2:]))
            for weight, output in zip(weights, given, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()
