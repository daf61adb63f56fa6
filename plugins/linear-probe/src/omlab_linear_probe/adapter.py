"""Training: embed every case once, fit a logistic regression, keep the head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.adapter import Adapter
from omlab.cards import ModelCard, Variant
from omlab.dataset import BoundDataset
from omlab.embeddings import embed, failures
from omlab.heads import HEAD, classifier_table, sigmoid, softmax
from omlab.labelled import figures, gather
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, Progress, silent

#: Inverse regularisation strengths that validation chooses from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
#: Bias of a class that cannot be learnt: so low that it is never predicted.
NEVER = -1e4

Vectors = NDArray[np.float32]


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

        Classes that do not exclude each other get a regression each, of one common strength. Raises what
        :func:`omlab.labelled.gather` and :func:`omlab.embeddings.embed` do.
        """
        splits = gather(dataset, shots=options["shots"], seed=options["seed"], listener=listener)
        found = embed(base, splits, duplicates=options["duplicates"], listener=listener)
        splits = found.splits
        listener(Progress(self.card.name, "train"))
        fit = _Fit(splits.exclusive, options["seed"])
        vectors, targets = found.vectors["train"], splits.train.targets
        strength = options["strength"]
        if strength is None:
            val = (found.vectors["val"], splits.val.targets) if len(splits.val) else None
            strength = fit.choose(vectors, targets, val)
        weight, bias = fit(vectors, targets, strength)
        from safetensors.numpy import save_file

        save_file({"weight": weight, "bias": bias}, folder / HEAD)
        squash = softmax if splits.exclusive else sigmoid
        report: dict[str, Any] = {
            "strength": strength, "features": int(vectors.shape[1]), "embeddings_computed": found.computed,
            "embeddings_cached": found.cached, "remarks": list(splits.remarks), **failures(found.failed),
        }  # fmt: skip
        for name, split in splits.all().items():
            probabilities = squash(found.vectors[name] @ weight.T + bias)
            measured = figures(probabilities, split.targets, exclusive=splits.exclusive)
            report |= {f"{name}_images": len(split)} | {f"{name}_{k}": v for k, v in measured.items()}
        return {
            **classifier_table(base.card, "linear probe", splits.classes, splits.exclusive), "report": report,
        }  # fmt: skip

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        from omlab_linear_probe.model import LinearProbeModel

        return LinearProbeModel(card, base, base_variant, folder)


class _Fit:
    """Scaling and logistic regression, as one affine map: weight [classes, features], bias [classes]."""

    def __init__(self, exclusive: bool, seed: int) -> None:
        self.exclusive, self.seed = exclusive, seed

    def __call__(self, vectors: Vectors, targets: Vectors, strength: float) -> tuple[Vectors, Vectors]:
        count, features = targets.shape[1], vectors.shape[1]
        weight, bias = np.zeros((count, features), np.float32), np.full(count, NEVER, np.float32)
        if self.exclusive:
            coefficients, intercept, present = self._regression(vectors, targets.argmax(axis=1), strength)
            if len(present) == 2:
                # Two classes have one row in scikit-learn: the logit of the second against the first.
                coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
                intercept = np.concatenate([np.zeros_like(intercept), intercept])
            weight[present], bias[present] = coefficients, intercept
            return weight, bias
        for c in range(count):
            own = targets[:, c].astype(int)
            if own.any() and not own.all():
                coefficients, intercept, _ = self._regression(vectors, own, strength)
                weight[c], bias[c] = coefficients[0], intercept[0]
            elif own.all():
                bias[c] = -NEVER
        return weight, bias

    @staticmethod
    def _regression(vectors: Vectors, labels: Any, strength: float) -> tuple[Any, Any, Any]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(vectors)
        found = LogisticRegression(C=strength, max_iter=2000).fit(scaler.transform(vectors), labels)
        coefficients = found.coef_ / scaler.scale_
        return coefficients, found.intercept_ - coefficients @ scaler.mean_, found.classes_

    def choose(self, vectors: Vectors, targets: Vectors, val: tuple[Vectors, Vectors] | None) -> float:
        """The strength with the best accuracy on ``val``; by cross-validation without; 1 for single shots."""

        def score(train: tuple[Vectors, Vectors], held: tuple[Vectors, Vectors], strength: float) -> float:
            weight, bias = self(*train, strength)
            logits = held[0] @ weight.T + bias
            squash = softmax if self.exclusive else sigmoid
            return figures(squash(logits), held[1], exclusive=self.exclusive)["accuracy"]

        if val is not None:
            return max(STRENGTHS, key=lambda c: (score((vectors, targets), val, c), -c))
        folds = self._folds(targets)
        if len(folds) < 2:
            return 1.0  # one case a class leaves nothing to validate on
        means = {}
        for c in STRENGTHS:
            parts = []
            for fold in folds:
                rest = np.setdiff1d(np.arange(len(targets)), fold)
                parts.append(score((vectors[rest], targets[rest]), (vectors[fold], targets[fold]), c))
            means[c] = float(np.mean(parts))
        return max(STRENGTHS, key=lambda c: (means[c], -c))

    def _folds(self, targets: Vectors) -> list[Any]:
        """At most five parts of the cases, each with cases of every class as far as they go."""
        if self.exclusive:
            counts = targets.sum(axis=0)
            smallest = int(counts[counts > 0].min())
        else:
            smallest = len(targets) // 2
        number = min(5, smallest)
        if number < 2:
            return []
        order = np.random.default_rng(self.seed).permutation(len(targets))
        if self.exclusive:  # class after class, dealt out in turn
            order = order[np.argsort(targets[order].argmax(axis=1), kind="stable")]
        return [order[part::number] for part in range(number)]
