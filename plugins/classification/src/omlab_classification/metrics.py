"""Metrics of class probabilities. A value that is not defined is NaN, never 0.

Macro values are plain means over the classes in which they are defined: AUC needs an image with the class and one
without, average precision one with it, F1 one with it or one that was called so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]


def auc(scores: Floats, positive: Truth) -> float:
    """Area under the ROC curve of one class; ties count one half."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def average_precision(scores: Floats, positive: Truth) -> float:
    """Sum over the thresholds of precision times the gain in recall, not interpolated; equals are one threshold."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # where a group of equal scores ends
    precision = hits[last] / (last + 1)
    gained = np.diff(hits[last], prepend=0) / hits[-1]
    return float((precision * gained).sum())


def f1(found: Truth, positive: Truth) -> float:
    """Of one class."""
    both = int((found & positive).sum())
    total = int(found.sum()) + int(positive.sum())
    return 2 * both / total if total else float("nan")


def kappa(found: NDArray[np.int64], truth: NDArray[np.int64], classes: int, *, quadratic: bool = False) -> float:
    """Cohen's kappa; ``quadratic`` weighs a confusion by the square of the distance of the classes (grades)."""
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, found), 1)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    grades = np.arange(classes)
    gap = np.abs(grades[:, None] - grades[None, :])
    weight = gap**2 if quadratic else (gap > 0)
    chance = float((weight * expected).sum())
    return 1 - float((weight * table).sum()) / chance if chance else float("nan")


def calibration_error(confidence: Floats, correct: Truth, bins: int) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over bins of equal width, weighted by count
    (Guo et al. 2017, equation 3)."""
    place = bins_of(confidence, bins)
    counts = np.bincount(place, minlength=bins)
    gap = np.abs(np.bincount(place, confidence, bins) - np.bincount(place, correct, bins))
    return float(gap.sum() / max(counts.sum(), 1))


def bins_of(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Number of the bin of equal width that each confidence is in; bins are open below."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def decided(
    probabilities: Floats, truth: Truth, *, exclusive: bool, threshold: float
) -> tuple[Truth, Floats, Truth]:  # fmt: skip
    """What was answered, [images, classes], and of every answer its confidence and whether it is right. An answer is an
    image where classes exclude each other, an image and class where they do not."""
    if not exclusive:
        found = probabilities >= threshold
        return found, np.where(found, probabilities, 1 - probabilities).ravel(), (found == truth).ravel()
    best = probabilities.argmax(axis=1)
    found = np.zeros_like(truth)
    found[np.arange(len(best)), best] = True
    return found, probabilities.max(axis=1), best == truth.argmax(axis=1)


def per_class(probabilities: Floats, truth: Truth, found: Truth) -> dict[str, Floats]:
    """``auc``, ``average_precision`` and ``f1`` of every class, each [classes]; inputs are [images, classes]."""
    classes = range(truth.shape[1])
    return {
        "auc": np.array([auc(probabilities[:, c], truth[:, c]) for c in classes]),
        "average_precision": np.array([average_precision(probabilities[:, c], truth[:, c]) for c in classes]),
        "f1": np.array([f1(found[:, c], truth[:, c]) for c in classes]),
    }


def overall(
    probabilities: Floats, truth: Truth, *, exclusive: bool, threshold: float, bins: int
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Every metric over all classes, and those of each class.

    Parameters
    ----------
    probabilities, truth : [images, classes].
    exclusive : an image has one class: the most probable one is its answer. Else those from ``threshold`` on, accuracy
        is that of single answers, and there is no kappa.
    """
    found, confidence, correct = decided(probabilities, truth, exclusive=exclusive, threshold=threshold)
    extra = {}
    if exclusive:
        best, wanted, classes = found.argmax(axis=1), truth.argmax(axis=1), truth.shape[1]
        extra = {
            "kappa": kappa(best, wanted, classes),
            "quadratic_kappa": kappa(best, wanted, classes, quadratic=True),
        }
    each = per_class(probabilities, truth, found)
    macro = {name: _mean(values) for name, values in each.items()}
    return {
        "auc": macro["auc"], "average_precision": macro["average_precision"], "accuracy": float(correct.mean()),
        "f1": macro["f1"], **extra, "calibration_error": calibration_error(confidence, correct, bins),
    }, each  # fmt: skip


def _mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
