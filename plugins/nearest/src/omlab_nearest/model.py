"""The adapted models: similarity to training cases, or to the mean of each class, in NumPy; in torch for the export.

Embeddings are scaled to unit length, after the mean of the training embeddings was taken from them: those of one model
share a large common part, which would make all cosines alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.heads import HeadModel

if TYPE_CHECKING:
    import torch

#: Below this a vector has no direction.
TINY = 1e-12
#: Share of the votes that a class without any gets, so that its logit is a number.
FLOOR = 1e-6

Vectors = NDArray[np.float32]


def unit(vectors: Vectors, mean: Vectors) -> Vectors:
    """Without the common part, and of length one, along the last axis."""
    moved = vectors - mean
    return moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), TINY)  # type: ignore[no-any-return]


def shares(similarity: Vectors, targets: Vectors, k: int, temperature: float) -> Vectors:
    """[cases, classes]: share of the votes of the ``k`` most similar of ``similarity`` [cases, training cases], each of
    the weight exp(cosine / temperature)."""
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k] if k < similarity.shape[1] else None
    if nearest is None:
        nearest = np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
    cosines = np.take_along_axis(similarity, nearest, axis=1)
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkc->nc", weights, targets[nearest]).astype(np.float32)


def logits_of_shares(found: Vectors, exclusive: bool) -> Vectors:
    """Logits whose soft-max (sigmoid) are the shares."""
    low = np.clip(found, FLOOR, 1 - FLOOR)
    return np.log(low) if exclusive else np.log(low) - np.log1p(-low)  # type: ignore[no-any-return]


class NeighboursModel(HeadModel):
    """The head holds ``bank`` [training cases, features] (unit), ``targets`` [training cases, classes], ``mean``
    [features], ``k`` [1] and ``temperature`` [1]."""

    def shapes(self, found: Mapping[str, NDArray[Any]]) -> bool:
        """A row a training case."""
        if set(found) != {"bank", "targets", "mean", "k", "temperature"}:
            return False
        cases, features = found["bank"].shape
        return (
            found["targets"].shape == (cases, len(self.card.labels))
            and found["mean"].shape == (features,)
            and 1 <= int(found["k"][0]) <= cases
            and float(found["temperature"][0]) > 0
        )

    def features(self) -> int:
        """Length of a row."""
        return int(self.tensors["bank"].shape[1])

    def logits(self, vector: Vectors) -> Vectors:
        """Of the shares of votes."""
        held = self.tensors
        similarity = unit(vector[None], held["mean"]) @ held["bank"].T
        found = shares(similarity, held["targets"], int(held["k"][0]), float(held["temperature"][0]))
        return logits_of_shares(found, self.exclusive)[0]

    def module(self) -> torch.nn.Module:
        """The same in torch."""
        from omlab_nearest.network import Neighbours

        return Neighbours(self.tensors, self.exclusive)


class PrototypesModel(HeadModel):
    """The head holds ``centres`` [classes, features] (unit; zero for a class that was never seen), ``mean`` [features],
    ``bias`` [classes] and ``temperature`` [1]."""

    def shapes(self, found: Mapping[str, NDArray[Any]]) -> bool:
        """A row a class."""
        if set(found) != {"centres", "mean", "bias", "temperature"}:
            return False
        count, features = found["centres"].shape
        return (
            count == len(self.card.labels)
            and found["mean"].shape == (features,)
            and found["bias"].shape == (count,)
            and float(found["temperature"][0]) > 0
        )

    def features(self) -> int:
        """Length of a row."""
        return int(self.tensors["centres"].shape[1])

    def logits(self, vector: Vectors) -> Vectors:
        """Cosines over the temperature."""
        held = self.tensors
        cosines = unit(vector, held["mean"]) @ held["centres"].T
        return (cosines / held["temperature"] + held["bias"]).astype(np.float32)  # type: ignore[no-any-return]

    def module(self) -> torch.nn.Module:
        """The same in torch."""
        from omlab_nearest.network import Prototypes

        return Prototypes(self.tensors)
