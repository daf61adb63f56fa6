"""The adapted model: the base's pipeline and engine, then one affine map in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omlab.heads import HeadModel

if TYPE_CHECKING:
    import torch


class LinearProbeModel(HeadModel):
    """The head holds ``weight`` [classes, features] and ``bias`` [classes]."""

    def shapes(self, found: Mapping[str, NDArray[np.generic]]) -> bool:
        """One row a class."""
        count = len(self.card.labels)
        return set(found) == {"weight", "bias"} and len(found["weight"]) == count and found["bias"].shape == (count,)

    def features(self) -> int:
        """Length of a row."""
        return int(self.tensors["weight"].shape[1])

    def logits(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The affine map."""
        return vector @ self.tensors["weight"].T + self.tensors["bias"]

    def module(self) -> torch.nn.Module:
        """The affine map in torch."""
        import torch

        weight, bias = torch.from_numpy(self.tensors["weight"]), torch.from_numpy(self.tensors["bias"])
        head = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        return head
