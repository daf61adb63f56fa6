"""Losses of the segmentation networks' training. U-Net: overlap over a whole batch of probabilities and masks of one
shape; UPerNet: cross-entropy of two heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from omlab_sdk.networks.upernet import resize

SMOOTHING = 1.0
#: Of UPerNet's auxiliary head.
AUXILIARY = 0.4


def dice_loss(probability: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice without a threshold: upstream's loss."""
    tp, fp, fn = _counts(probability, truth)
    return 1 - (2 * tp + SMOOTHING) / (2 * tp + fp + fn + SMOOTHING)


def jaccard_loss(probability: Tensor, truth: Tensor) -> Tensor:
    """Soft intersection over union, which upstream offers beside it."""
    tp, fp, fn = _counts(probability, truth)
    return 1 - (tp + SMOOTHING) / (tp + fp + fn + SMOOTHING)


def heads_loss(heads: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of [batch, classes, ...] logits brought to the size of the labels [batch, rows, columns]; what
    comes after the first head counts less."""
    terms = [F.cross_entropy(resize(head, labels.shape[1:]), labels) for head in heads]
    return terms[0] + AUXILIARY * sum(terms[1:])


def _counts(probability: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tp = (probability * truth).sum()
    return tp, probability.sum() - tp, truth.sum() - tp
