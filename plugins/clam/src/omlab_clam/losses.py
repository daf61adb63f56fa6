"""The smooth top-1 SVM loss (Berrada et al., ICLR 2018, arXiv 1802.07595)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmoothTop1SVM(nn.Module):
    """Mean over rows of a margin loss that is smooth where two scores are near each other, and a hinge elsewhere.

    Parameters
    ----------
    classes : scores of a row.
    alpha : margin.
    tau : temperature; towards 0 the smooth part becomes the hinge.
    thresh : a row whose two best scores differ by ``tau * log(thresh)`` or more takes the hinge: the smooth form would
        be equal and its gradient less exact.
    """

    labels: Tensor

    def __init__(self, classes: int, alpha: float = 1.0, tau: float = 1.0, thresh: float = 1000.0) -> None:
        super().__init__()
        self.alpha, self.tau, self.least_gap = alpha, tau, tau * math.log(thresh)
        # Published heads carry it in their state dict.
        self.register_buffer("labels", torch.arange(classes))

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Scores [row, class] and targets [row] to the mean loss."""
        return self.rows(scores, target).mean()

    def rows(self, scores: Tensor, target: Tensor) -> Tensor:
        """Loss of each row."""
        right = scores.gather(1, target[:, None])
        margins = scores + self.alpha * (1 - F.one_hot(target, scores.shape[1])) - right
        best = scores.topk(2, dim=1).values
        hard = best[:, 0] - best[:, 1] >= self.least_gap
        smooth = self.tau * torch.logsumexp(margins / self.tau, dim=1)
        return torch.where(hard, margins.amax(dim=1), smooth)
