"""One training loop for all that learns here: adapters, fine-tuning of segmenters, pre-training. Needs torch.

The loop (:func:`fit`) knows no task: the caller gives the network, a loss, batches and a way to validate. It brings one
or several devices (by accelerate), mixed precision, accumulation of gradients, warm-up and cosine, layer-wise learning
rates, clipping, early stopping, a log, and states from which an interrupted training goes on to the very same weights.

``deep_supervision`` holds nnU-Net's loss, ``rates`` the schedules and parameter groups, ``batches`` what a network
learns from, ``state`` what is kept on disk, ``log`` the record of a training, ``loop`` the loop.
"""

from __future__ import annotations

from omlab_sdk.training.batches import Arrays, Batches
from omlab_sdk.training.loop import Fitted, TrainingError, clear, fit, unfinished
from omlab_sdk.training.rates import UNDECAYED, layer_of, learning_rate, parameter_groups, polynomial_rate
from omlab_sdk.training.settings import Settings

__all__ = [
    "UNDECAYED", "Arrays", "Batches", "Fitted", "Settings", "TrainingError", "clear", "fit", "layer_of",
    "learning_rate", "parameter_groups", "polynomial_rate", "unfinished",
]  # fmt: skip
