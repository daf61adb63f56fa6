"""The losses of PyMIC that MIS-FM is trained with, and the pre-training objective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = 1e-5


class DiceLoss(nn.Module):
    """One minus the soft Dice, over all voxels of the batch, a mean over the classes, background included."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Both [batch, classes, D, H, W]; the target one-hot, or shares of voxels."""
        p = logits.softmax(dim=1)
        axes = (0, *range(2, logits.ndim))
        both, sizes = (p * target).sum(dim=axes), p.sum(dim=axes) + target.sum(dim=axes)
        return 1 - ((2 * both + SMOOTH) / (sizes + SMOOTH)).mean()


class CrossEntropyLoss(nn.Module):
    """Cross-entropy, a mean over all voxels; probabilities are kept away from 0 and 1."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        p = logits.softmax(dim=1) * 0.999 + 5e-4
        return -(target * p.log()).sum(dim=1).mean()


class CombinedLoss(nn.Module):
    """Dice and cross-entropy, half and half."""

    def __init__(self, dice: float = 0.5, cross_entropy: float = 0.5) -> None:
        super().__init__()
        self.weights = (dice, cross_entropy)
        self.dice, self.cross_entropy = DiceLoss(), CrossEntropyLoss()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        a, b = self.weights
        loss: Tensor = a * self.dice(logits, target) + b * self.cross_entropy(logits, target)
        return loss


class DeepSupervision(nn.Module):
    """A loss over predictions of several levels, finest first, each weighing half of the one before.

    Parameters
    ----------
    mode : what meets at a level: 2 averages the target there (upstream's default), 1 interpolates the target, 0
        interpolates the prediction.
    """

    def __init__(self, loss: nn.Module | None = None, mode: int = 2) -> None:
        super().__init__()
        if mode not in (0, 1, 2):
            raise ValueError(f"deep supervision has the modes 0, 1 and 2, found {mode}")
        self.loss, self.mode = loss or CombinedLoss(), mode

    def forward(self, predictions: Sequence[Tensor], target: Tensor) -> Tensor:
        if isinstance(predictions, Tensor):
            raise ValueError("deep supervision takes a list of predictions: set multiscale_pred")
        total = target.new_zeros(())
        weights = [0.5**n for n in range(len(predictions))]
        for weight, given in zip(weights, predictions, strict=True):
            prediction, wanted = given, target
            if prediction.shape[2:] != target.shape[2:]:
                size = prediction.shape[2:]
                if self.mode == 2:
                    wanted = F.adaptive_avg_pool3d(target, size)
                elif self.mode == 1:
                    wanted = F.interpolate(target, size, mode="trilinear", align_corners=False)
                else:
                    prediction = F.interpolate(prediction, target.shape[2:], mode="trilinear", align_corners=False)
            total = total + weight / sum(weights) * self.loss(prediction, wanted)
        return total


class FusionObjective(nn.Module):
    """Pre-training: a network to segment the blocks of :class:`omlab_mis_fm.fusion.VolumeFusion`.

    Parameters
    ----------
    network : PCT-Net or FMUNet with as many classes as the task; one that gives several levels is trained on all.
    """

    def __init__(self, network: nn.Module, classes: int = 5) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.single, self.deep = CombinedLoss(), DeepSupervision()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images [batch, 1, D, H, W] and labels [batch, 1, D, H, W] to the loss."""
        target = one_hot(labels[:, 0], self.classes)
        found = self.network(images)
        loss: Tensor = self.deep(found, target) if isinstance(found, list) else self.single(found, target)
        return loss


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """[batch, D, H, W] integers to [batch, classes, D, H, W] float32."""
    return F.one_hot(labels.long(), classes).movedim(-1, 1).to(torch.float32)
