"""Overlap of masks as upstream's evaluation defines it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Added above and below, so that two empty masks agree.
SMOOTH = 1e-7


def binary(prediction: NDArray[Any]) -> NDArray[np.bool_]:
    """Logits (where a value is negative) or probabilities to a mask: probability above a half."""
    if prediction.min(initial=0) < 0:
        return prediction > 0
    return prediction > 0.5


def _sums(prediction: NDArray[Any], truth: NDArray[Any]) -> tuple[Any, Any, Any]:
    found, wanted = binary(prediction), np.asarray(truth) > 0.5
    axes = tuple(range(1, found.ndim))
    return (found & wanted).sum(axis=axes), found.sum(axis=axes), wanted.sum(axis=axes)


def dice(prediction: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Dice of each sample, [batch, ...] to [batch], rounded to 4 decimals only where it is reported."""
    both, found, wanted = _sums(prediction, truth)
    return np.asarray((2 * both + SMOOTH) / (found + wanted + SMOOTH))


def iou(prediction: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each sample, [batch, ...] to [batch]."""
    both, found, wanted = _sums(prediction, truth)
    return np.asarray((both + SMOOTH) / (found + wanted - both + SMOOTH))
