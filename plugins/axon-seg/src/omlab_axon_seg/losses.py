"""What the networks are trained with: nnU-Net's loss over all heads, and the soft centre-line Dice of the older one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.training.deep_supervision import DeepSupervision

#: Of the optimiser (Adam, amsgrad), and of the rate that falls when the training loss no longer does.
RATE, WEIGHT_DECAY = 3e-4, 3e-5
FACTOR, PATIENCE, THRESHOLD = 0.2, 30, 1e-3
EPOCHS, BATCHES_AN_EPOCH, BATCH = 550, 250, 2
#: How often a soft skeleton is thinned.
ITERATIONS = 5


def optimiser(network: nn.Module, rate: float = RATE) -> torch.optim.Adam:
    """The optimiser of the recipe."""
    return torch.optim.Adam(network.parameters(), rate, weight_decay=WEIGHT_DECAY, amsgrad=True)


def plateau(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """The schedule of the recipe; step it with the moving average of the training loss after each epoch."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=FACTOR, patience=PATIENCE, threshold=THRESHOLD, threshold_mode="abs"
    )


class AxonObjective(nn.Module):
    """The training objective: a loss over every head of the network, each with the labels at its size.

    A head weighs half of the next finer one, the coarsest nothing; labels are made smaller by the nearest voxel.

    Parameters
    ----------
    network : with deep supervision; one that gives a single head is trained on that.
    """

    def __init__(self, network: nn.Module, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.loss = network, DeepSupervision(loss)

    def forward(self, volumes: Tensor, labels: Tensor) -> Tensor:
        """Volumes [batch, 1, z, y, x] and labels [batch, 1, z, y, x] to the loss."""
        loss: Tensor = self.loss(self.network(volumes), labels)
        return loss


def soft_skeleton(x: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Centre lines of a soft mask [batch, channel, z, y, x] in 0..1, by thinning with minima and maxima."""
    for _ in range(iterations):
        least = _eroded(x)
        contour = F.relu(F.max_pool3d(least, 3, 1, 1) - least)
        x = F.relu(x - contour)
    return x


def _eroded(x: Tensor) -> Tensor:
    """Minimum over the six neighbours."""
    lines = [
        -F.max_pool3d(-x, kernel, 1, padding)
        for kernel, padding in (((3, 1, 1), (1, 0, 0)), ((1, 3, 1), (0, 1, 0)), ((1, 1, 3), (0, 0, 1)))
    ]
    return torch.minimum(torch.minimum(lines[0], lines[1]), lines[2])


def centre_lines(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share of the truth's centre lines that was found, share of the prediction's that is true, and their harmonic
    mean (clDice; Shit et al. 2021)."""
    tiny = 1e-12
    of_truth, of_prediction = soft_skeleton(truth), soft_skeleton(prediction)
    recall = ((of_truth * prediction).sum() + tiny) / (of_truth.sum() + tiny)
    precision = ((of_prediction * truth).sum() + tiny) / (of_prediction.sum() + tiny)
    return recall, precision, 2 * recall * precision / (recall + precision)


class ClDiceLoss(nn.Module):
    """Minus the soft centre-line Dice: the loss of the older trainer."""

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Both [batch, channel, z, y, x] in 0..1."""
        return -centre_lines(prediction, truth)[2]
