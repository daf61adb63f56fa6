"""What a network learns from: batches by epoch and place, so that a training can go on anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class Batches(Protocol):
    """Batches that are a function of epoch and place, with all that is drawn by chance in them.

    This is what makes a training resumable in the middle of an epoch, and lets several devices take every second batch
    without reading the others.
    """

    def __len__(self) -> int:
        """Batches of an epoch."""

    def batch(self, epoch: int, index: int) -> Any:
        """Batch ``index`` of an epoch: tensors, or tuples, lists and dicts of tensors, on the processor."""


class Arrays:
    """Batches of arrays whose first axis is the case: shuffled anew in every epoch, without repetition.

    Parameters
    ----------
    arrays : each [cases, ...]; a batch is a tuple of tensors in their order. They may be memory maps.
    size : cases of a batch. The last of an epoch is smaller, but is left out if it has one case only and others exist
        (a norm over a batch has no meaning there).
    augment : changes a batch, given it and a torch generator for all that it draws.
    weights : [cases], how likely each case is drawn; with them cases are drawn with replacement.
    """

    def __init__(
        self,
        arrays: Sequence[Any],
        size: int,
        *,
        seed: int = 0,
        augment: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] | None = None,
        weights: Any = None,
    ) -> None:
        counts = {len(array) for array in arrays}
        if len(counts) != 1 or not next(iter(counts)):
            raise ValueError(f"arrays must have the same number of cases and at least one, found {sorted(counts)}")
        self.arrays, self.size, self.seed, self.augment, self.weights = tuple(arrays), size, seed, augment, weights
        self.count = next(iter(counts))
        self._order: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.size)
        return full + (rest > 1 or (rest == 1 and full == 0))

    def order(self, epoch: int) -> Any:
        """[cases] of an epoch in the order in which they come."""
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            if self.weights is None:
                order = generator.permutation(self.count)
            else:
                share = np.asarray(self.weights, np.float64)
                order = generator.choice(self.count, self.count, p=share / share.sum())
            self._order = (epoch, order)
        return self._order[1]

    def batch(self, epoch: int, index: int) -> tuple[Any, ...]:
        """Tensors of the cases of one batch."""
        import torch

        chosen = self.order(epoch)[index * self.size : (index + 1) * self.size]
        batch = tuple(torch.from_numpy(np.ascontiguousarray(array[chosen])) for array in self.arrays)
        if self.augment is None:
            return batch
        place = (self.seed * 1_000_003 + epoch) * 1_000_003 + index
        return self.augment(batch, torch.Generator().manual_seed(place % 2**63))
