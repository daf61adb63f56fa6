"""How PathoDuet is trained: schedules, and the optimiser that upstream offers for convolutional networks.

The published stages use AdamW (weight decay 0.1, learning rate 1.5e-4 times batch / 256): 100 epochs with 40 of warm-up
for MoCo, 20 with 10 for Bridge, 500 with 100 for CrossStain. The linear probe uses SGD with momentum 0.9, no decay, for
90 epochs at 0.1 times batch / 256.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def learning_rate(epoch: float, *, lr: float, warmup_epochs: float, epochs: float) -> float:
    """Of pre-training at a fractional epoch: a linear warm-up, then half a cosine down to 0."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    return lr * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


def momentum(epoch: float, *, m: float = 0.99, epochs: float) -> float:
    """Of the momentum encoder at a fractional epoch: from ``m`` up to 1 by half a cosine."""
    return 1.0 - 0.5 * (1.0 + math.cos(math.pi * epoch / epochs)) * (1.0 - m)


def probe_learning_rate(epoch: float, *, lr: float, epochs: float) -> float:
    """Of the linear probe at a whole epoch: half a cosine down to 0."""
    return lr * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017).

    Matrices and kernels get decay and a step in proportion to their own norm, one-dimensional parameters plain
    momentum.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.0, weight_decay: float = 0.0, momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust_coefficient": trust_coefficient},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` is called first where it is given, as torch's optimisers do."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = self._scaled(parameter, group) if parameter.ndim > 1 else parameter.grad
                state = self.state[parameter]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(parameter)
                state["mu"].mul_(group["momentum"]).add_(change)
                parameter.add_(state["mu"], alpha=-group["lr"])
        return loss

    @staticmethod
    def _scaled(parameter: Tensor, group: dict[str, Any]) -> Tensor:
        change = parameter.grad.add(parameter, alpha=group["weight_decay"])  # type: ignore[union-attr]
        size, step = parameter.norm(), change.norm()
        factor = torch.where((size > 0) & (step > 0), group["trust_coefficient"] * size / step, torch.ones_like(size))
        return change * factor
