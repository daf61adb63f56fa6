"""Fine-tuning and evaluation as upstream does them: loss and metrics.

Parameter groups and schedule are those of :mod:`omlab_sdk.training.rates`, which follow this recipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """(1 - s) times the negative log-likelihood plus s times the mean over classes, averaged over the batch."""
    logs = logits.log_softmax(dim=-1)
    likelihood = -logs.gather(1, labels[:, None])[:, 0]
    return ((1.0 - smoothing) * likelihood - smoothing * logs.mean(dim=-1)).mean()


def binary_measures(labels: NDArray[np.int_], predicted: NDArray[np.int_], classes: int) -> NDArray[np.float64]:
    """Accuracy, sensitivity, specificity, precision, G, F1 and MCC of each class against the rest, averaged over the
    classes 1 and up: class 0 is left out. NaN where a class is never predicted and never hit."""
    rows = []
    for c in range(1, classes):
        truth, answer = labels == c, predicted == c
        tp, tn = float((truth & answer).sum()), float((~truth & ~answer).sum())
        fp, fn = float((~truth & answer).sum()), float((truth & ~answer).sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            total = np.float64(tp + tn + fp + fn)
            sensitivity, specificity = np.float64(tp) / (tp + fn), np.float64(tn) / (tn + fp)
            precision = np.float64(tp) / (tp + fp)
            f1 = 2 * precision * sensitivity / (precision + sensitivity)
            spread = np.sqrt(np.float64((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
            mcc = (tp * tn - fp * fn) / spread
            g = np.sqrt(sensitivity * specificity)
            rows.append([(tp + tn) / total, sensitivity, specificity, precision, g, f1, mcc])
    return np.array(rows).mean(axis=0)


def areas(labels: NDArray[np.int_], probabilities: NDArray[np.floating]) -> tuple[float, float]:
    """Macro one-vs-rest area under the ROC curve, and macro average precision, over all classes."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    onehot = np.eye(probabilities.shape[1], dtype=int)[labels]
    return (
        float(roc_auc_score(onehot, probabilities, multi_class="ovr", average="macro")),
        float(average_precision_score(onehot, probabilities, average="macro")),
    )


def metrics(labels: NDArray[np.int_], probabilities: NDArray[np.floating]) -> dict[str, float]:
    """The newer code's metrics, macro averages over one-hot columns, and ``score``: (F1 + AUROC + kappa) / 3."""
    from sklearn import metrics as sk

    predicted = probabilities.argmax(axis=1)
    columns = np.eye(probabilities.shape[1], dtype=int)
    truth, answer = columns[labels], columns[predicted]
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0}
    roc, precision = areas(labels, probabilities)
    found = {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "f1": float(sk.f1_score(truth, answer, **macro)),
        "roc_auc": roc,
        "hamming": float(sk.hamming_loss(truth, answer)),
        "jaccard": float(sk.jaccard_score(truth, answer, **macro)),
        "precision": float(sk.precision_score(truth, answer, **macro)),
        "recall": float(sk.recall_score(truth, answer, **macro)),
        "average_precision": precision,
        "kappa": float(sk.cohen_kappa_score(labels, predicted)),
    }
    return found | {"score": (found["f1"] + found["roc_auc"] + found["kappa"]) / 3}


def ordered(found: dict[str, float], order: Iterable[str]) -> NDArray[np.float64]:
    """Values of ``found`` in an order of names."""
    return np.array([found[name] for name in order])
