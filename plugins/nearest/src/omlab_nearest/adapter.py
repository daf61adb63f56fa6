"""Embed every case once, keep the training embeddings or their means, choose what is to be chosen on validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.adapter import Adapter
from omlab.cards import ModelCard, Variant
from omlab.dataset import BoundDataset
from omlab.embeddings import Embedded, embed, failures
from omlab.errors import UsageError
from omlab.heads import HEAD, classifier_table, sigmoid, softmax
from omlab.labelled import figures, gather
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.progress import Listener, Progress, silent
from omlab_nearest.model import NeighboursModel, PrototypesModel, logits_of_shares, shares, unit

#: Numbers of neighbours that validation chooses from.
KS = (1, 3, 5, 10, 20, 50, 100)
TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
#: Bias of a class that was never seen.
NEVER = -1e4

Vectors = NDArray[np.float32]


class _Nearest(Adapter):
    """What both share: embedding, the report, the files."""

    def adapt(
        self,
        base: LoadedModel,
        dataset: BoundDataset,
        folder: Path,
        options: Mapping[str, Any],
        listener: Listener = silent,
    ) -> dict[str, Any]:
        """Keep the head of the split ``train`` in ``folder``. Raises what :func:`omlab.labelled.gather` and
        :func:`omlab.embeddings.embed` do, and UsageError for options out of range."""
        if options["temperature"] is not None and options["temperature"] <= 0:
            raise UsageError(f"the temperature must be greater than 0, found {options['temperature']}")
        splits = gather(dataset, shots=options["shots"], seed=options["seed"], listener=listener)
        found = embed(base, splits, duplicates=options["duplicates"], listener=listener)
        listener(Progress(self.card.name, "train"))
        splits = found.splits
        mean = found.vectors["train"].mean(axis=0)
        vectors = {name: unit(array, mean) for name, array in found.vectors.items()}
        tensors, chosen, logits = self.fit(found, vectors, options)
        from safetensors.numpy import save_file

        save_file({"mean": mean, **tensors}, folder / HEAD)
        squash = softmax if splits.exclusive else sigmoid
        report: dict[str, Any] = {
            **chosen, "features": len(mean), "embeddings_computed": found.computed,
            "embeddings_cached": found.cached, "remarks": list(splits.remarks), **failures(found.failed),
        }  # fmt: skip
        for name, split in splits.all().items():
            report[f"{name}_images"] = len(split)
            if name != "train":  # every training case is its own nearest neighbour
                measured = figures(squash(logits(vectors[name])), split.targets, exclusive=splits.exclusive)
                report |= {f"{name}_{key}": value for key, value in measured.items()}
        how = (self.card.title or self.card.name).lower()
        return {**classifier_table(base.card, how, splits.classes, splits.exclusive), "report": report}

    def fit(self, found: Embedded, vectors: Mapping[str, Vectors], options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Tensors of the head, what was chosen, and the function from unit embeddings to logits."""
        raise TypeError(f"{type(self).__name__} must define fit()")


class Neighbours(_Nearest):
    """The adapter ``nearest-neighbours``."""

    def fit(self, found: Embedded, vectors: Mapping[str, Vectors], options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """``k`` is the one with the best AUC on the validation cases (accuracy where there is none), the smallest of
        equals; without validation cases the square root of the number of training cases, at most 20."""
        bank, targets = vectors["train"], found.splits.train.targets
        count, exclusive, heat = len(bank), found.splits.exclusive, options["temperature"]
        k = options["k"]
        if k is not None and not 1 <= k <= count:
            raise UsageError(f"k lies between 1 and the {count} training cases, found {k}")

        def logits(given: Vectors, k: int) -> Vectors:
            return logits_of_shares(shares(given @ bank.T, targets, k, heat), exclusive)

        if k is None and "val" in vectors:
            squash = softmax if exclusive else sigmoid

            def score(k: int) -> tuple[float, float]:
                got = figures(squash(logits(vectors["val"], k)), found.splits.val.targets, exclusive=exclusive)
                return got.get("auc", 0.0), got["accuracy"]

            k = max(sorted({min(k, count) for k in KS}, reverse=True), key=lambda k: (*score(k), -k))
        elif k is None:
            k = max(1, min(20, round(count**0.5)))
        tensors = {
            "bank": bank, "targets": targets, "k": np.array([k], np.int64), "temperature": np.array([heat], np.float32),
        }  # fmt: skip
        return tensors, {"k": k, "temperature": heat}, lambda given: logits(given, k)

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        return NeighboursModel(card, base, base_variant, folder)


class Prototypes(_Nearest):
    """The adapter ``prototypes``."""

    def fit(self, found: Embedded, vectors: Mapping[str, Vectors], options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """The temperature is the one with the smallest cross-entropy on validation cases."""
        targets, exclusive = found.splits.train.targets, found.splits.exclusive
        seen = targets.any(axis=0)
        sums = targets.T @ vectors["train"]
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        bias = np.where(seen, 0.0, NEVER).astype(np.float32)
        if not exclusive:
            # Half-way between the cases of a class and the others lies the probability of one half.
            own = vectors["train"] @ centres.T
            inside, outside = targets > 0, targets == 0
            middle = (_means(own, inside, 0.0) + _means(own, outside, -1.0)) / 2
        heat = options["temperature"]

        def logits(given: Vectors, heat: float) -> Vectors:
            cosines = given @ centres.T
            shift = 0.0 if exclusive else middle
            return ((cosines - shift) / heat + bias).astype(np.float32)  # type: ignore[no-any-return]

        if heat is None and exclusive and "val" in vectors:
            rows, labels = np.arange(len(found.splits.val)), found.splits.val.targets.argmax(axis=1)
            heat = min(
                TEMPERATURES,
                key=lambda t: -np.log(np.maximum(softmax(logits(vectors["val"], t))[rows, labels], 1e-9)).mean(),
            )
        heat = 0.1 if heat is None else heat
        if not exclusive:
            bias = (bias - middle / heat).astype(np.float32)
            middle = np.zeros_like(middle)
        tensors = {
            "centres": centres.astype(np.float32), "bias": bias, "temperature": np.array([heat], np.float32),
        }  # fmt: skip
        return tensors, {"temperature": heat}, lambda given: logits(given, heat)

    def model(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> Model:
        """The model of a directory that :meth:`adapt` filled."""
        return PrototypesModel(card, base, base_variant, folder)


def _means(values: Vectors, chosen: NDArray[np.bool_], without: float) -> Vectors:
    """[columns] mean of the chosen rows of each column; ``without`` where none is."""
    count = chosen.sum(axis=0)
    return np.where(count > 0, (values * chosen).sum(axis=0) / np.maximum(count, 1), without).astype(np.float32)
