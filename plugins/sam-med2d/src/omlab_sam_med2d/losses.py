"""The losses that SAM-Med2D was fine-tuned with."""

from __future__ import annotations

from torch import Tensor

#: How much focal loss counts; Dice and quality loss count once.
FOCAL_WEIGHT = 20.0


def focal(logits: Tensor, mask: Tensor) -> Tensor:
    """Focal loss with exponent 2 and a quarter of the weight on the foreground, a mean over all pixels."""
    p = logits.sigmoid()
    found = 0.25 * mask * (1 - p) ** 2 * (p + 1e-12).log()
    left = 0.75 * (1 - mask) * p**2 * (1 - p + 1e-12).log()
    return -(found + left).sum() / (mask.numel() + 1e-12)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """One minus the soft Dice of the whole batch at once."""
    p = logits.sigmoid()
    return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)


def quality(logits: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
    """Squared error of the predicted quality against the soft overlap of the whole batch at once."""
    p = logits.sigmoid()
    both = (p * mask).sum()
    overlap = (both + 1e-7) / (p.sum() + mask.sum() - both + 1e-7)
    return ((overlap - predicted) ** 2).mean()


def total(logits: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
    """Weighted sum of the three.

    Parameters
    ----------
    logits, mask : [batch, 1, S, S]; the mask is 0 or 1.
    predicted : [batch, 1] predicted qualities.
    """
    return FOCAL_WEIGHT * focal(logits, mask) + dice(logits, mask) + quality(logits, mask, predicted)
