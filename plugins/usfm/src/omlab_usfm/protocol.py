"""Fine-tuning and evaluation as upstream does them: learning rates, parameter groups, overlap of masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

#: Parameters that are never decayed, besides biases and one-dimensional ones.
UNDECAYED = frozenset({"pos_embed", "cls_token"})
SMOOTHING = 1e-5


def scaled_rate(lr: float, batch: int, processes: int = 1) -> float:
    """A configuration's rate for the batch that is really used: upstream's are for 512 images."""
    return lr * batch * processes / 512.0


def learning_rate(step: int, *, lr: float, warmup_lr: float, min_lr: float, warmup_steps: int, steps: int) -> float:
    """At a step: from ``warmup_lr`` up to ``lr`` in a line, then along the cosine that began at step 0."""
    if step < warmup_steps:
        return warmup_lr + step * (lr - warmup_lr) / warmup_steps
    if step >= steps:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + math.cos(math.pi * step / steps))


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter: 0 for tokens and embedding, i + 1 for block i, depth + 1 for what comes after."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(
    model: nn.Module, *, weight_decay: float = 0.05, layer_decay: float = 0.65
) -> list[dict[str, Any]]:
    """Groups for ``AdamW`` of the classifier: decay where it is due, and ``lr_scale`` smaller the lower the layer."""
    depth = len(model.blocks)  # type: ignore[arg-type]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name.endswith(".bias") or name in UNDECAYED
        layer = layer_of(name, depth)
        start = {
            "params": [], "names": [], "weight_decay": 0.0 if plain else weight_decay,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }  # fmt: skip
        group = groups.setdefault((layer, plain), start)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def overlap(prediction: NDArray[Any], reference: NDArray[Any]) -> dict[str, float]:
    """Of one image's foreground, all classes from 1 up together, with 1e-5 added to both parts of every ratio: Dice,
    IoU, accuracy, sensitivity, specificity."""
    p, r = np.asarray(prediction) > 0, np.asarray(reference) > 0
    tp, tn = float((p & r).sum()), float((~p & ~r).sum())
    fp, fn = float((p & ~r).sum()), float((~p & r).sum())

    def share(part: float, whole: float) -> float:
        return (part + SMOOTHING) / (whole + SMOOTHING)

    return {
        "dice": share(2 * tp, 2 * tp + fp + fn), "iou": share(tp, tp + fp + fn),
        "accuracy": share(tp + tn, tp + tn + fp + fn), "sensitivity": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
    }  # fmt: skip
