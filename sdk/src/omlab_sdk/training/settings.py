"""How a training goes: values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from omlab.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def _positive(instance: Any, attribute: Any, value: Any) -> None:
    if not value > 0:
        raise UsageError(f"{attribute.name.replace('_', ' ')} must be greater than 0, found {value}")


def _share(instance: Any, attribute: Any, value: Any) -> None:
    if value < 0:
        raise UsageError(f"{attribute.name.replace('_', ' ')} cannot be negative, found {value}")


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of a training.

    Attributes
    ----------
    epochs : passes over the batches.
    lr, min_lr : learning rate at its peak and at its end.
    warmup_epochs : epochs, also parts of one, of the linear warm-up (at most half of all); the cosine follows.
    weight_decay, betas : of AdamW.
    layer_decay : factor of the learning rate from a layer to the one below; 1 gives all layers the same.
    accumulate : batches whose gradients make one step.
    clip : greatest norm of the gradient; ``None`` leaves it.
    precision : of the arithmetic; weights and their updates are always float32. ``"float16"`` scales the loss and needs
        a GPU.
    monitor : the figure of ``validate`` that is best when greatest (smallest with ``smaller``); the best epoch's
        weights are kept. ``None`` keeps the last.
    second : a figure of ``validate`` by which epochs of equal ``monitor`` are told apart, best when smallest.
    patience : epochs without a better figure after which the training ends; ``None`` goes through all.
    seed : of dropout and the like; the same seed, device and threads give the same weights.
    device : ``"auto"``, ``"cpu"`` or ``"cuda"``.
    workers : processes that make batches ahead.
    save_seconds : a state is written when the last one is that old, and after every epoch that is so long.
    optimiser : makes the optimiser from (network, settings) instead of AdamW; its groups may have ``lr_scale``.
    schedule : fractional epoch -> learning rate, instead of warm-up and cosine.
    """

    epochs: int = attrs.field(default=50, validator=_positive)
    lr: float = attrs.field(default=1e-3, validator=_positive)
    min_lr: float = attrs.field(default=1e-6, validator=_share)
    warmup_epochs: float = attrs.field(default=5.0, validator=_share)
    weight_decay: float = attrs.field(default=0.05, validator=_share)
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = attrs.field(default=1.0, validator=_positive)
    accumulate: int = attrs.field(default=1, validator=_positive)
    clip: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    monitor: str | None = None
    smaller: bool = False
    second: str | None = None
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = attrs.field(default=0, validator=_share)
    save_seconds: float = 300.0
    optimiser: Callable[[nn.Module, Settings], Optimizer] | None = attrs.field(default=None, eq=False)
    schedule: Callable[[float], float] | None = attrs.field(default=None, eq=False)

    def as_json(self) -> Mapping[str, Any]:
        """What decides the course of a training: all but where it runs and when it is saved."""
        leave = {"optimiser", "schedule", "device", "workers", "save_seconds"}
        found = {field.name: getattr(self, field.name) for field in attrs.fields(Settings) if field.name not in leave}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
