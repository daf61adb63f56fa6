"""Self-distillation without labels (DINO, Caron et al. 2021): a student learns to predict, from views of a case, what
its own running average says of other views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormedLinear(nn.Module):
    """Linear layer without bias whose rows have lengths of their own (weight normalisation)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outside, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.empty(outside, inside))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class DinoHead(nn.Module):
    """Features [sample, width] to scores of prototypes [sample, out_dim]."""

    def __init__(
        self, in_dim: int, out_dim: int = 65536, *, nlayers: int = 3, hidden_dim: int = 2048, bottleneck_dim: int = 256
    ) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (max(nlayers, 1) - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [nn.Linear(inside, outside), nn.GELU()]
        self.mlp: nn.Module = nn.Sequential(*layers[:-1]) if len(widths) > 2 else layers[0]
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = NormedLinear(bottleneck_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last_layer(F.normalize(self.mlp(x), dim=-1)))


class Learner(nn.Module):
    """Encoder and head; one is the student, another the teacher."""

    def __init__(self, backbone: nn.Module, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[Tensor], groups: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Views, each [sample, channel, ...], to [view * sample, out_dim], view by view.

        Views of one group have the same shape and go through together; each alone without groups.
        """
        found = []
        for group in groups or [[number] for number in range(len(views))]:
            found.append(self.backbone(torch.cat([views[number] for number in group])))
        return cast(Tensor, self.head(torch.cat(found)))


class DinoLoss(nn.Module):
    """Cross-entropy between what the teacher says of its views and the student of all others, and the centre that
    keeps the teacher from giving one answer to everything.

    Parameters
    ----------
    ncrops : views of the student; the teacher sees the first :attr:`teacher_views` of them.
    warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, nepochs : the teacher's temperature grows linearly
        from the first to the second.
    """

    center: Tensor

    def __init__(
        self, out_dim: int, *, ncrops: int = 10, warmup_teacher_temp: float = 0.04, teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 0, nepochs: int = 100, student_temp: float = 0.1,
        center_momentum: float = 0.9, teacher_views: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ncrops, self.teacher_views = ncrops, teacher_views
        self.student_temp, self.center_momentum = student_temp, center_momentum
        warm = np.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.temperatures = np.concatenate([warm, np.full(max(0, nepochs - len(warm)), teacher_temp)])
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student: Tensor, teacher: Tensor, epoch: int) -> Tensor:
        """The loss; the centre moves afterwards.

        Parameters
        ----------
        student : [views * sample, out_dim], view by view.
        teacher : [teacher views * sample, out_dim].
        """
        own = F.log_softmax(student / self.student_temp, dim=-1).chunk(self.ncrops)
        temperature = float(self.temperatures[epoch])
        aims = F.softmax((teacher - self.center) / temperature, dim=-1).detach().chunk(self.teacher_views)
        terms = [
            -(aim * guess).sum(dim=-1).mean()
            for number, aim in enumerate(aims)
            for other, guess in enumerate(own)
            if other != number
        ]
        with torch.no_grad():
            mean = teacher.mean(dim=0, keepdim=True)
            self.center.mul_(self.center_momentum).add_(mean, alpha=1 - self.center_momentum)
        return torch.stack(terms).mean()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """One step of the teacher towards the student, in place."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.mul_(momentum).add_(fast, alpha=1 - momentum)


def cosine(start: float, end: float, step: int, steps: int, *, warmup: int = 0, warmup_start: float = 0.0) -> float:
    """Value at ``step`` of ``steps``: a linear warm-up, then half a cosine from ``start`` to ``end``.

    Learning rate: 0.0005 * batch / 256 to 1e-6 with 10 epochs of warm-up; weight decay: 0.04 to 0.4; momentum of the
    teacher: 0.996 to 1.
    """
    if step < warmup:
        return warmup_start + (start - warmup_start) * step / max(1, warmup - 1)
    share = (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


def parameter_groups(network: nn.Module) -> list[dict[str, object]]:
    """Parameters that are decayed, and those that are not: biases and one-dimensional ones."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim == 1 or name.endswith(".bias") else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


def clip_gradients(network: nn.Module, norm: float = 3.0) -> None:
    """Shorten the gradient of each parameter by itself to at most ``norm``, in place."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_((norm / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))
