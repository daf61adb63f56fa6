"""Losses of the segmentation networks' training, over a whole batch of probabilities and masks of one shape."""

from __future__ import annotations

from torch import Tensor

SMOOTHING = 1.0


def dice_loss(probability: Tensor, truth: Tensor) -> Tensor:
    """Soft Dice without a threshold: upstream's loss."""
    tp, fp, fn = _counts(probability, truth)
    return 1 - (2 * tp + SMOOTHING) / (2 * tp + fp + fn + SMOOTHING)


def jaccard_loss(probability: Tensor, truth: Tensor) -> Tensor:
    """Soft intersection over union, which upstream offers beside it."""
    tp, fp, fn = _counts(probability, truth)
    return 1 - (tp + SMOOTHING) / (tp + fp + fn + SMOOTHING)


def _counts(probability: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tp = (probability * truth).sum()
    return tp, probability.sum() - tp, truth.sum() - tp
