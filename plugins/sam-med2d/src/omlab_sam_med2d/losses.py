"""The losses that SAM-Med2D was fine-tuned with.

All take logits and masks [batch, 1, S, S], the mask 0 or 1, and are sums over the whole batch at once.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class FocalLoss(nn.Module):
    """Focal loss, a mean over all pixels.

    Parameters
    ----------
    gamma : exponent that makes easy pixels count less.
    alpha : weight of the foreground; the background has the rest of 1.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25) -> None:
        super().__init__()
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        p = logits.sigmoid()
        found = self.alpha * mask * (1 - p) ** self.gamma * (p + 1e-12).log()
        left = (1 - self.alpha) * (1 - mask) * p**self.gamma * (1 - p + 1e-12).log()
        return -(found + left).sum() / (mask.numel() + 1e-12)


class DiceLoss(nn.Module):
    """One minus the soft Dice, with ``smooth`` above and below."""

    def __init__(self, smooth: float = 1.0) -> None:
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        p = logits.sigmoid()
        return 1 - (2 * (p * mask).sum() + self.smooth) / (p.sum() + mask.sum() + self.smooth)


class QualityLoss(nn.Module):
    """Mean squared error of the predicted qualities [batch, 1] against the soft overlap (IoU) of the batch."""

    def forward(self, logits: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
        p = logits.sigmoid()
        both = (p * mask).sum()
        overlap = (both + 1e-7) / (p.sum() + mask.sum() - both + 1e-7)
        return ((overlap - predicted) ** 2).mean()


class FineTuningLoss(nn.Module):
    """``focal_weight`` times focal loss, plus Dice loss, plus quality loss: the fine-tuning objective."""

    def __init__(self, focal_weight: float = 20.0) -> None:
        super().__init__()
        self.focal_weight = focal_weight
        self.focal, self.dice, self.quality = FocalLoss(), DiceLoss(), QualityLoss()

    def forward(self, logits: Tensor, mask: Tensor, predicted: Tensor) -> Tensor:
        """
        Parameters
        ----------
        logits : [batch, 1, S, S] of the kept masks, at the size of the frame.
        mask : [batch, 1, S, S] of 0 and 1.
        predicted : [batch, 1] predicted qualities of the kept masks.
        """
        whole = self.focal_weight * self.focal(logits, mask) + self.dice(logits, mask)
        return cast(Tensor, whole + self.quality(logits, mask, predicted))
