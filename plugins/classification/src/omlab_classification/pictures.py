"""What a classifier did, as charts: ROC curves, calibration, and the confusion of classes or their AUC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab import charts
from omlab_classification.metrics import bins_of, decided

if TYPE_CHECKING:
    from PIL.Image import Image

#: Classes whose confusion can be read as a table; of more, the AUC of each is shown.
_CELLS = 20


def draw(
    title: str,
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    truth: NDArray[np.bool_],
    auc: NDArray[np.float64],
    *,
    exclusive: bool,
    threshold: float,
    bins: int,
) -> Image:
    """A sheet; ``probabilities`` and ``truth`` are [cases, classes], ``auc`` is of each class."""
    known = [c for c in np.argsort(-truth.sum(axis=0), kind="stable") if not np.isnan(auc[c])]
    lines = {f"{classes[c]} ({auc[c]:.3f})": roc(probabilities[:, c], truth[:, c]) for c in known}
    panels = [charts.curves("ROC by class, the most frequent first (AUC)", lines, "1 - specificity", "sensitivity")]
    found, confidence, correct = decided(probabilities, truth, exclusive=exclusive, threshold=threshold)
    place = bins_of(confidence, bins)
    used = np.unique(place)
    points = [(float(confidence[place == b].mean()), float(correct[place == b].mean())) for b in used]
    panels.append(charts.curves("Calibration", {"all answers": points}, "confidence", "share that is right"))
    if exclusive and len(classes) <= _CELLS:
        table = np.zeros((len(classes), len(classes)), int)
        np.add.at(table, (truth.argmax(axis=1), found.argmax(axis=1)), 1)
        panels.append(charts.matrix("Confusion", classes, table.tolist(), "answer", "reference"))
    else:
        rows = [charts.Figure(name, float(value)) for name, value in zip(classes, auc, strict=True)]
        panels.append(charts.figures("AUC by class", rows, low=0.0, high=1.0))
    return charts.sheet(title, panels, f"{len(truth)} cases")


def roc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Points (1 - specificity, sensitivity) from the highest threshold to the lowest; equal scores are one step."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    steps: Any = zip(alarms / alarms[-1], hits / hits[-1], strict=True)
    return [(0.0, 0.0), *((float(x), float(y)) for x, y in steps)]
