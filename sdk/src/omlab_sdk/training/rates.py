"""Learning rates over time and over the layers of a network, and which parameters are decayed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Parameters that are never decayed, besides biases and one-dimensional ones: tables of positions and single tokens.
UNDECAYED = frozenset({"pos_embed", "cls_token", "dist_token"})
#: Parameters before the first block, by the last part of their name.
_FIRST = frozenset({"pos_embed", "cls_token", "mask_token"})
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def learning_rate(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """At a fractional epoch: a linear warm-up, then half a cosine. A group's rate is this times its ``lr_scale``."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    if epoch >= epochs:
        return min_lr
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * share))


def polynomial_rate(epoch: float, epochs: float, initial: float, exponent: float = 0.9) -> float:
    """Down from ``initial`` to nothing as a power of what is left of ``epochs``: nnU-Net's schedule, and others'."""
    return float(initial * max(0.0, 1 - epoch / epochs) ** exponent)


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter of a transformer of ``depth`` blocks, wherever in a larger network it is: 0 for tokens and
    embedding, i + 1 for block i, depth + 1 for what comes after."""
    parts = name.split(".")
    if parts[-1] in _FIRST or "patch_embed" in parts:
        return 0
    block = _BLOCK.search(name)
    return int(block.group(1)) + 1 if block else depth + 1


def depth_of(network: nn.Module) -> int:
    """Number of blocks in the first list called ``blocks``; 0 for a network without."""
    for name, module in network.named_modules():
        if name.rpartition(".")[2] == "blocks" and hasattr(module, "__len__"):
            return len(module)
    return 0


def parameter_groups(
    network: nn.Module,
    *,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    undecayed: Collection[str] = UNDECAYED,
    layer: Callable[[str, int], int] = layer_of,
    depth: int | None = None,
) -> list[dict[str, Any]]:
    """Groups of the parameters that learn, one a layer and decay, with ``names``, ``weight_decay`` and
    ``lr_scale = layer_decay^(layers - layer)``.

    Biases, one-dimensional parameters and those of which the last part of the name is ``undecayed`` are not decayed.
    ``depth`` is the number of blocks, counted if not told.
    """
    depth = depth_of(network) if depth is None else depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name.rpartition(".")[2] in undecayed
        level = depth + 1 if layer_decay == 1 else layer(name, depth)
        group = groups.setdefault(
            (level, plain),
            {
                "params": [], "names": [], "weight_decay": 0.0 if plain else weight_decay,
                "lr_scale": layer_decay ** (depth + 1 - level),
            },
        )  # fmt: skip
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())
