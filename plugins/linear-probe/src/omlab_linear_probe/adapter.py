"""Training: embed every image once, fit a logistic regression, keep the head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.adapter import Adapter
from omlab.adapting import BoundDataset
from omlab.cards import ModelCard, Variant
from omlab.errors import InputError, OmlabError
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, Progress, silent
from omlab.results import Classification, Embedding

HEAD = "head.safetensors"
#: Inverse regularisation strengths that validation chooses from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@attrs.frozen(eq=False)
class Embedded:
    """Embeddings [n, features] float32 and class indices [n] of one split."""

    vectors: NDArray[np.float32]
    classes: NDArray[np.int64]
    failed: tuple[str, ...] = ()


class LinearProbe(Adapter):
    """The adapter ``linear-probe``."""

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Fit a head on the split ``train``; write it into ``folder``.

        Raises
        ------
        omlab.errors.InputError
            Fewer than two classes have training images.
        """
        classes = dataset.classes
        train = embed(base, dataset, "train", classes, options["shots"], options["seed"], listener)
        if len(np.unique(train.classes)) < 2:
            raise InputError(
                f"dataset '{dataset.name}' has training images of {len(np.unique(train.classes))} class, two are needed"
            )
        splits = dataset.dataset.card.splits
        others = {s: embed(base, dataset, s, classes, 0, 0, listener) for s in ("val", "test") if s in splits}
        listener(Progress(self.card.name, "train"))
        fitted, strength = _fit(train, others.get("val"), options)
        weight, bias = _fold(fitted, len(classes))
        from safetensors.numpy import save_file

        save_file({"weight": weight, "bias": bias}, folder / HEAD)
        report: dict[str, Any] = {"strength": strength, "features": int(train.vectors.shape[1])}
        for split, found in {"train": train, **others}.items():
            if len(found.classes):
                report |= {f"{split}_{k}": v for k, v in _measure(found, weight, bias).items()}
            if found.failed:
                report[f"{split}_failed"] = list(found.failed)
        title = base.card.title or base.card.name
        return {
            "title": f"{title}, linear probe",
            "summary": f"Classifies {', '.join(classes)} with a linear head on the embedding of {base.card.name}",
            "task": ["classification"],
            "outputs": ["classification"],
            "labels": [{"value": i, "name": name} for i, name in enumerate(classes)],
            "report": report,
        }

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        from omlab_linear_probe.model import LinearProbeModel

        return LinearProbeModel(card, base, base_variant, folder / HEAD)


def embed(
    base: LoadedModel,
    dataset: BoundDataset,
    split: str,
    classes: tuple[str, ...],
    shots: int,
    seed: int,
    listener: Listener,
) -> Embedded:
    """Embed a split (``shots`` images a class, drawn with ``seed``; all for 0), each image once.

    An image that cannot be read is left out and named.
    """
    items = [(item, item.truth()) for item in dataset.items(split)]
    labelled = [(i, classes.index(t.best)) for i, t in items if isinstance(t, Classification)]
    if shots:
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(labelled))
        taken: dict[int, int] = {}
        chosen = []
        for index in order.tolist():
            label = labelled[index][1]
            if taken.get(label, 0) < shots:
                taken[label] = taken.get(label, 0) + 1
                chosen.append(index)
        labelled = [labelled[i] for i in sorted(chosen)]
    vectors, indices, failed = [], [], []
    for number, (item, label) in enumerate(labelled):
        listener(Progress(f"{dataset.name} {split}", "embed", number, len(labelled), "images"))
        try:
            result = base.run(item.case()).result
        except OmlabError as error:
            failed.append(f"{item.name}: {error.message}")
            continue
        if not isinstance(result, Embedding):
            raise InputError(f"model '{base.card.name}' gave {result.kind} for {item.name}, an embedding was expected")
        vectors.append(result.vector)
        indices.append(label)
    features = np.stack(vectors) if vectors else np.zeros((0, 1), np.float32)
    return Embedded(features, np.array(indices, np.int64), tuple(failed))


def _fit(train: Embedded, val: Embedded | None, options: Mapping[str, Any]) -> tuple[Any, float]:
    """A fitted pipeline and its regularisation strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def pipeline(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))

    def fit(strength: float) -> Any:
        return pipeline(strength).fit(train.vectors, train.classes)

    if options["strength"] is not None:
        return fit(options["strength"]), options["strength"]
    if val is not None and len(val.classes):
        fitted = {c: fit(c) for c in STRENGTHS}
        best = max(STRENGTHS, key=lambda c: (fitted[c].score(val.vectors, val.classes), -c))
        return fitted[best], best
    smallest = int(np.bincount(train.classes)[np.unique(train.classes)].min())
    if smallest < 2:
        return fit(1.0), 1.0  # one image a class leaves nothing to validate on
    folds = StratifiedKFold(min(5, smallest), shuffle=True, random_state=options["seed"])
    scores = {c: cross_val_score(pipeline(c), train.vectors, train.classes, cv=folds).mean() for c in STRENGTHS}
    best = max(STRENGTHS, key=lambda c: (scores[c], -c))
    return fit(best), best


def _fold(fitted: Any, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scaling and regression as one affine map: weight [classes, features], bias [classes].

    A class without training images gets a bias so low that it is never predicted.
    """
    scaler, regression = fitted[0], fitted[1]
    coefficients = regression.coef_ / scaler.scale_
    intercept = regression.intercept_ - coefficients @ scaler.mean_
    if len(regression.classes_) == 2:
        # Two classes have one row in scikit-learn: the logit of the second against the first.
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    weight = np.zeros((count, coefficients.shape[1]), np.float32)
    bias = np.full(count, -1e4, np.float32)
    weight[regression.classes_] = coefficients
    bias[regression.classes_] = intercept
    return weight, bias


def _measure(found: Embedded, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> dict[str, float]:
    """Accuracy, and macro one-vs-rest AUC over the classes that occur, where it is defined."""
    from sklearn.metrics import roc_auc_score

    from omlab_linear_probe.model import softmax

    probabilities = softmax(found.vectors @ weight.T + bias)
    figures = {"images": len(found.classes), "accuracy": float((probabilities.argmax(1) == found.classes).mean())}
    areas = [
        roc_auc_score(found.classes == c, probabilities[:, c])
        for c in np.unique(found.classes)
        if 0 < (found.classes == c).sum() < len(found.classes)
    ]
    return figures | ({"auc": float(np.mean(areas))} if areas else {})
