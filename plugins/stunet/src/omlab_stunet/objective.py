"""What STU-Net is trained and fine-tuned with, as nnU-Net 1.7.1's trainer has it (Isensee et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab.inference.resampling import nearest

SMOOTH = 1e-5
#: Settings of the optimiser (stochastic gradient descent with Nesterov's momentum).
MOMENTUM, WEIGHT_DECAY, CLIP = 0.99, 3e-5, 12.0
#: Learning rate to begin with: from scratch, and when fine-tuning.
RATE, FINE_TUNING_RATE = 1e-2, 1e-3
EPOCHS, BATCHES_AN_EPOCH = 1000, 250


def learning_rate(epoch: int, epochs: int = EPOCHS, initial: float = RATE, exponent: float = 0.9) -> float:
    """Learning rate of an epoch, counted from 0: a polynomial down to nothing."""
    return float(initial * (1 - epoch / epochs) ** exponent)


def optimiser(network: nn.Module, rate: float = RATE) -> torch.optim.SGD:
    """The optimiser of the recipe; gradients are to be clipped to the norm :data:`CLIP`."""
    return torch.optim.SGD(network.parameters(), rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)


class SoftDice(nn.Module):
    """Minus the mean soft Dice of the classes but the background.

    [batch, classes, ...] logits and [batch, 1, ...] labels to a number. ``batch``: overlap is counted over the whole
    batch; else for each case, and averaged.
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
    """:class:`SoftDice` plus cross entropy, the mean over voxels."""

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


def output_scales(strides: Sequence[Sequence[int]]) -> tuple[tuple[float, ...], ...]:
    """Size of each output of the network as a share of the finest, along three axes; the last stride has none."""
    scales = [(1.0, 1.0, 1.0)]
    for stride in list(strides)[:-1]:
        scales.append(tuple(scale / s for scale, s in zip(scales[-1], stride, strict=True)))  # type: ignore[arg-type]
    return tuple(scales)


def downsampled(target: Tensor, scales: Sequence[Sequence[float]]) -> list[Tensor]:
    """[batch, 1, a, b, c] labels at every scale, by the nearest voxel."""
    found = []
    for scale in scales:
        small = target
        for axis, share in enumerate(scale, start=2):
            size = round(target.shape[axis] * share)
            if size != target.shape[axis]:
                places = torch.from_numpy(nearest(target.shape[axis], size)).to(target.device)
                small = small.index_select(axis, places)
        found.append(small)
    return found


class DeepSupervision(nn.Module):
    """Weighted sum of a loss over the network's outputs, finest first, each with its labels
    (:func:`downsampled`)."""

    def __init__(self, loss: nn.Module | None = None, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss or DiceAndCrossEntropy()
        self.weights = None if weights is None else tuple(weights)

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        weights = self.weights or output_weights(len(outputs))
        terms = [
            weight * self.loss(output, target)
            for weight, output, target in zip(weights, outputs, targets, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()
