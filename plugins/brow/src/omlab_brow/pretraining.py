"""How BROW was pre-trained: self-distillation of the DINO family, with views of a patch and of what lies around it.

Upstream's training code is not published. The paper (arXiv 2309.08259) names what it adds to DINO: patches of a view
shuffled, changed colours, and a third global view from a lower level of the slide's pyramid. Temperatures, momentum and
sizes of crops are DINO's own defaults here (Caron et al. 2021), not BROW's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from omlab_brow.network import VisionTransformer
from omlab_sdk.networks.dino import DinoHead, DinoLoss, Learner, cosine, follow

#: Of the teacher, at the first and at the last step.
MOMENTUM = (0.996, 1.0)


class Distillation(nn.Module):
    """Student and teacher, and the loss between what they say of their views.

    Parameters
    ----------
    encoder : begins as both student and teacher.
    global_views, local_views : how many of each :meth:`forward` is given.
    out_dim, hidden_dim, bottleneck_dim : of the projection head.
    """

    def __init__(
        self, encoder: VisionTransformer, *, global_views: int = 3, local_views: int = 8, out_dim: int = 65536,
        hidden_dim: int = 2048, bottleneck_dim: int = 256, teacher_temp: float = 0.04, student_temp: float = 0.1,
        center_momentum: float = 0.9, epochs: int = 100,
    ) -> None:  # fmt: skip
        super().__init__()
        width = encoder.cls_token.shape[2]
        head = DinoHead(width, out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim)
        self.student = Learner(encoder, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.global_views = global_views
        self.loss = DinoLoss(
            out_dim, ncrops=global_views + local_views, warmup_teacher_temp=teacher_temp, teacher_temp=teacher_temp,
            student_temp=student_temp, center_momentum=center_momentum, nepochs=epochs, teacher_views=global_views,
        )  # fmt: skip

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor], epoch: int = 0) -> Tensor:
        """The loss of a batch.

        Parameters
        ----------
        teacher : global views, each [batch, 3, row, column].
        student : as many global views of the same places, perhaps changed, and then local views.
        """
        count = self.global_views
        groups = [list(range(count)), list(range(count, len(student)))]
        told = self.teacher(teacher, [list(range(count))]).detach()
        return cast(Tensor, self.loss(self.student(student, [group for group in groups if group]), told, epoch))

    def follow(self, step: int, steps: int) -> None:
        """Move the teacher towards the student, after step ``step`` of ``steps``."""
        follow(self.teacher, self.student, cosine(*MOMENTUM, step, steps))
