"""Losses of fine-tuning: attention to mask, and smoothed cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.upernet import resize

#: Pixels of no class.
IGNORED = 255


class Criterion(nn.Module):
    """Holds the weight of each class, with "no object" last."""

    def __init__(self, classes: int, absent: float = 0.1) -> None:
        super().__init__()
        weight = torch.ones(classes + 1)
        weight[-1] = absent
        self.register_buffer("empty_weight", weight)


class ATMLoss(nn.Module):
    """Of a head's outputs and labels [batch, rows, columns]: query k is class k, there is no matching.

    Terms, each also for the earlier stages with the suffix ``_0``, ``_1``, ...: ``loss_ce`` (is the class there?),
    ``loss_mask`` (focal, gamma 2, alpha 0.25), ``loss_dice``. Pixels of 255 belong to no class; they count against
    every mask.
    """

    def __init__(self, classes: int, *, weight: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.weights = {"loss_ce": 1.0 * weight, "loss_mask": 20.0 * weight, "loss_dice": 1.0 * weight}
        self.criterion = Criterion(classes)

    def forward(self, outputs: Mapping[str, Any], labels: Tensor) -> dict[str, Tensor]:
        present = torch.stack([(labels == k).flatten(1).any(dim=1) for k in range(self.classes)], dim=1)
        count = _mean_over_processes(present.sum().float()).clamp(min=1)
        found = self._terms(outputs, labels, present, count)
        for i, earlier in enumerate(outputs.get("aux_outputs", ())):
            found |= {f"{k}_{i}": v for k, v in self._terms(earlier, labels, present, count).items()}
        return found

    def _terms(self, outputs: Mapping[str, Any], labels: Tensor, present: Tensor, count: Tensor) -> dict[str, Tensor]:
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        own = torch.arange(self.classes, device=labels.device).expand_as(present)
        target = torch.where(present, own, self.classes)
        weight = cast(Tensor, self.criterion.empty_weight)
        truth = torch.stack([labels == k for k in range(self.classes)], dim=1)[present].flatten(1).to(masks.dtype)
        found = resize(masks, labels.shape[1:])[present].flatten(1)
        terms = {
            "loss_ce": F.cross_entropy(logits.transpose(1, 2), target, weight),
            "loss_mask": focal(found, truth).mean(dim=1).sum() / count,
            "loss_dice": dice(found.sigmoid(), truth).sum() / count,
        }
        return {name: value * self.weights[name] for name, value in terms.items()}


def focal(logits: Tensor, truth: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of every element."""
    probability = logits.sigmoid()
    right = torch.where(truth > 0, probability, 1 - probability)
    balance = torch.where(truth > 0, alpha, 1 - alpha)
    return balance * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def dice(probability: Tensor, truth: Tensor) -> Tensor:
    """[masks, pixels] to the Dice loss of each mask, smoothed by 1."""
    return 1 - (2 * (probability * truth).sum(dim=1) + 1) / (probability.sum(dim=1) + truth.sum(dim=1) + 1)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """The classifier's loss: the share ``smoothing`` of each label is spread over all classes."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _mean_over_processes(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
