"""The loss that SAM-Med3D was trained with."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class DiceCELoss(nn.Module):
    """Soft Dice loss with squared denominators, a mean over the batch, plus cross-entropy.

    Parameters
    ----------
    cross_entropy : the binary cross-entropy of the logits. Without it the loss is that of the first weights: with
        MONAI before 1.3 upstream took a softmax over one channel, whose cross-entropy is always 0.
    """

    def __init__(self, *, cross_entropy: bool = True, smooth: float = 1e-5) -> None:
        super().__init__()
        self.cross_entropy, self.smooth = cross_entropy, smooth

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Both [batch, 1, x, y, z], the mask 0 or 1."""
        p, axes = logits.sigmoid(), tuple(range(1, logits.ndim))
        both = (p * mask).sum(dim=axes)
        squares = (p * p).sum(dim=axes) + (mask * mask).sum(dim=axes)
        dice = (1 - (2 * both + self.smooth) / (squares + self.smooth)).mean()
        return dice + F.binary_cross_entropy_with_logits(logits, mask) if self.cross_entropy else dice
