"""MedFMC's metrics as mmcls 0.25 and MedFM compute them; all in per cent."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import stats

_EPSILON = float(np.finfo(np.float32).eps)
#: Exponents beyond are none of float64.
_GREATEST = 700.0
#: Score from which a class counts as found, for precision and recall.
FOUND = 0.5


def average_precision(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """AP of one class without interpolation: mean precision at the positives, images ranked by descending score.

    A label of -1 ("difficult") counts neither way. Without positives it is 0. Equal scores keep the order of the file;
    upstream leaves their order to an unstable sort.
    """
    ranked = labels[np.argsort(-scores, kind="stable")]
    positive = ranked == 1
    hits, seen = np.cumsum(positive), np.cumsum(ranked != -1)
    precision = hits / np.maximum(seen, _EPSILON)
    return 100 * float(precision[positive].sum() / max(positive.sum(), _EPSILON))


def area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties one half; NaN where all images, or none, are positive."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return math.nan
    ranks = stats.rankdata(scores)
    return 100 * float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


@attrs.frozen(eq=False)
class Scores:
    """Of one submission; ``None`` where the set has no such metric.

    Attributes
    ----------
    class_ap, class_auc : of every class, on the scores as they are; NaN where it is undefined.
    averaged_auc : what the mean AUC is taken of, where that is not ``class_auc``: on scores after a soft-max.
    positives : images of every class.
    pooled : CP, CR, CF1 (means over classes, F1 of those means) and OP, OR, OF1 (pooled), of multi-label sets.
    """

    images: int
    class_auc: tuple[float, ...]
    positives: tuple[int, ...]
    class_ap: tuple[float, ...] | None = None
    accuracy: float | None = None
    averaged_auc: tuple[float, ...] | None = None
    pooled: dict[str, float] = attrs.field(factory=dict)

    @property
    def undefined(self) -> tuple[int, ...]:
        """Classes of which all images, or none, are positive."""
        return tuple(i for i, value in enumerate(self.class_auc) if math.isnan(value))

    def auc(self, absent: str) -> float | None:
        """Mean over the classes. A class without an AUC is left out, or (``"upstream"``) takes that of the class before
        it, as upstream's swallowed exception has it; without one before it there is none."""
        values = list(self.class_auc if self.averaged_auc is None else self.averaged_auc)
        if absent == "upstream":
            values = list(repeated(values))
            return None if any(map(math.isnan, values)) else float(np.mean(values))
        defined = [value for value in values if not math.isnan(value)]
        return float(np.mean(defined)) if defined else None

    def mean_ap(self, absent: str) -> float | None:
        """Mean over the classes; one without positives counts as 0, or is left out."""
        if self.class_ap is None:
            return None
        kept = [ap for ap, n in zip(self.class_ap, self.positives, strict=True) if n or absent == "upstream"]
        return float(np.mean(kept)) if kept else None


def repeated(values: Iterable[float]) -> tuple[float, ...]:
    """The values, that before it in place of one that is not a number."""
    found: list[float] = []
    for value in values:
        found.append(found[-1] if math.isnan(value) and found else value)
    return tuple(found)


def multi_label(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Of a set whose images may have several classes; both [images, classes]."""
    classes = range(labels.shape[1])
    positive = labels == 1
    found = scores >= FOUND
    hits = (found & positive).sum(axis=0)
    precision = hits / np.maximum(found.sum(axis=0), _EPSILON)
    recall = hits / np.maximum(positive.sum(axis=0), _EPSILON)
    cp, cr = 100 * float(precision.mean()), 100 * float(recall.mean())
    op = 100 * float(hits.sum() / max(found.sum(), _EPSILON))
    overall = 100 * float(hits.sum() / max(positive.sum(), _EPSILON))
    return Scores(
        images=len(labels),
        class_auc=tuple(area(scores[:, c], positive[:, c]) for c in classes),
        class_ap=tuple(average_precision(scores[:, c], labels[:, c]) for c in classes),
        positives=tuple(int(n) for n in positive.sum(axis=0)),
        pooled={
            "CP": cp, "CR": cr, "CF1": 2 * cp * cr / max(cp + cr, _EPSILON),
            "OP": op, "OR": overall, "OF1": 2 * op * overall / max(op + overall, _EPSILON),
        },
    )  # fmt: skip


def single_label(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Of a set with one class an image: [images, classes] scores, [images] class indices.

    For the mean AUC the rows go through a soft-max although they are probabilities already; the greatest score only
    counts above 0.
    """
    best = scores.argmax(axis=1)
    correct = (best == labels) & (scores.max(axis=1) > 0)
    # Not shifted, as upstream has it, unless that would overflow.
    exponents = np.exp(scores - (scores.max(axis=1, keepdims=True) if scores.max() > _GREATEST else 0.0))
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    classes = range(scores.shape[1])
    return Scores(
        images=len(labels),
        class_auc=tuple(area(scores[:, c], labels == c) for c in classes),
        averaged_auc=tuple(area(shares[:, c], labels == c) for c in classes),
        positives=tuple(int((labels == c).sum()) for c in classes),
        accuracy=100 * float(correct.mean()),
    )
