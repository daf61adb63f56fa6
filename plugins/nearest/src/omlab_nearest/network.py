"""The heads in torch, so that one exported graph holds network and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_nearest.model import FLOOR, TINY


def _buffers(module: nn.Module, tensors: Mapping[str, Any]) -> None:
    for name, value in tensors.items():
        module.register_buffer(name, torch.from_numpy(value.copy()))


class Neighbours(nn.Module):
    """[batch, features] to logits of the shares of votes, [batch, classes]."""

    bank: Tensor
    targets: Tensor
    mean: Tensor

    def __init__(self, tensors: Mapping[str, Any], exclusive: bool) -> None:
        super().__init__()
        self.k, self.heat = int(tensors["k"][0]), float(tensors["temperature"][0])
        self.exclusive = exclusive
        _buffers(self, {name: tensors[name] for name in ("bank", "targets", "mean")})

    def forward(self, vector: Tensor) -> Tensor:
        similarity = F.normalize(vector - self.mean, dim=-1, eps=TINY) @ self.bank.T
        cosines, nearest = similarity.topk(self.k, dim=-1)
        weights = torch.softmax(cosines / self.heat, dim=-1)
        found = (weights[..., None] * self.targets[nearest]).sum(dim=-2).clamp(FLOOR, 1 - FLOOR)
        return found.log() if self.exclusive else found.log() - (1 - found).log()


class Prototypes(nn.Module):
    """[batch, features] to cosines over the temperature, [batch, classes]."""

    centres: Tensor
    mean: Tensor
    bias: Tensor
    temperature: Tensor

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__()
        _buffers(self, tensors)

    def forward(self, vector: Tensor) -> Tensor:
        cosines = F.normalize(vector - self.mean, dim=-1, eps=TINY) @ self.centres.T
        return cosines / self.temperature + self.bias
