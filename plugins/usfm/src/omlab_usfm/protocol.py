"""Fine-tuning and evaluation as upstream does them: learning rates, overlap of masks.

Parameter groups are those of :mod:`omlab_sdk.training.rates`, with a layer decay of 0.65.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMOOTHING = 1e-5


def scaled_rate(lr: float, batch: int, processes: int = 1) -> float:
    """A configuration's rate for the batch that is really used: upstream's are for 512 images."""
    return lr * batch * processes / 512.0


def learning_rate(
    step: float, *, lr: float, warmup_lr: float, min_lr: float, warmup_steps: float, steps: float
) -> float:
    """At a step: from ``warmup_lr`` up to ``lr`` in a line, then along the cosine that began at step 0."""
    if step < warmup_steps:
        return warmup_lr + step * (lr - warmup_lr) / warmup_steps
    if step >= steps:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * step / steps))


def overlap(prediction: NDArray[Any], reference: NDArray[Any]) -> dict[str, float]:
    """Of one image's foreground, all classes from 1 up together, with 1e-5 added to both parts of every ratio: Dice,
    IoU, accuracy, sensitivity, specificity."""
    p, r = np.asarray(prediction) > 0, np.asarray(reference) > 0
    tp, tn = float((p & r).sum()), float((~p & ~r).sum())
    fp, fn = float((p & ~r).sum()), float((~p & r).sum())

    def share(part: float, whole: float) -> float:
        return (part + SMOOTHING) / (whole + SMOOTHING)

    return {
        "dice": share(2 * tp, 2 * tp + fp + fn), "iou": share(tp, tp + fp + fn),
        "accuracy": share(tp + tn, tp + tn + fp + fn), "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
    }  # fmt: skip
