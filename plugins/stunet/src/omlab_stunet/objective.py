"""What STU-Net is trained and fine-tuned with, as nnU-Net 1.7.1's trainer has it (Isensee et al. 2021)."""

from __future__ import annotations

import torch
from torch import nn

from omlab_sdk.training.rates import polynomial_rate

#: Settings of the optimiser (stochastic gradient descent with Nesterov's momentum).
MOMENTUM, WEIGHT_DECAY, CLIP = 0.99, 3e-5, 12.0
#: Learning rate to begin with: from scratch, and when fine-tuning.
RATE, FINE_TUNING_RATE = 1e-2, 1e-3
EPOCHS, BATCHES_AN_EPOCH = 1000, 250


def learning_rate(epoch: float, epochs: int = EPOCHS, initial: float = RATE, exponent: float = 0.9) -> float:
    """Learning rate of an epoch, counted from 0: a polynomial down to nothing."""
    return polynomial_rate(epoch, epochs, initial, exponent)


def optimiser(network: nn.Module, rate: float = RATE) -> torch.optim.SGD:
    """The optimiser of the recipe; gradients are to be clipped to the norm :data:`CLIP`."""
    return torch.optim.SGD(network.parameters(), rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
