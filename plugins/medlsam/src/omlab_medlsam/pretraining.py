"""MedLAM's pre-training objective: relative distance between two crops, and features that find their place again.

Two crops of each scan come undistorted ("ori") and augmented; the coordinates of the augmented voxels went through the
same spatial changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_medlsam.network import SCALES

#: Draws a whole number of a range, both ends included.
Draw = Callable[[int, int], int]
#: Voxels below this are background.
BACKGROUND = 1e-4
TINY = 1e-12
#: How near to 1 a probability may come: the step of float32 there.
SURE = 2.0**-23


class RelativeDistance(nn.Module):
    """RDR: mean squared error, mm^2, of the predicted way from one crop to the other."""

    ratio: Tensor

    def __init__(self, ratio_mm: Sequence[float] = (1500, 600, 600)) -> None:
        super().__init__()
        self.register_buffer("ratio", torch.tensor([float(r) for r in ratio_mm]))

    def predicted(self, first: Tensor, second: Tensor) -> Tensor:
        """Position heads [batch, 3] of both crops to millimetres [batch, 3]."""
        return self.ratio * torch.tanh(first - second)

    def forward(self, first: Tensor, second: Tensor, distance: Tensor) -> Tensor:
        """``distance`` [batch, 3] is the centre of the first crop minus that of the second, mm."""
        return F.mse_loss(self.predicted(first, second), distance)


class PlaceOfFeatures(nn.Module):
    """EMB: the features of an undistorted voxel should be found at its place in the augmented crop, at every scale.

    Parameters
    ----------
    points : voxels that are drawn in each crop.
    near_mm : voxels of the augmented crop within factor * near_mm are the same place, those beyond twice that are not.
    draw : gives random whole numbers; ``random.randint`` without one.
    heat : what cosines are multiplied by before the soft-max.
    """

    def __init__(self, points: int = 20, near_mm: float = 3.0, *, draw: Draw | None = None, heat: float = 15.0) -> None:
        super().__init__()
        self.points, self.near_mm, self.heat = points, near_mm, heat
        self.draw: Draw = draw or random.randint

    def forward(
        self,
        ori: Sequence[Sequence[Tensor]],
        changed: Sequence[Sequence[Tensor]],
        images: Sequence[Tensor],
        ori_places: Sequence[Tensor],
        changed_places: Sequence[Tensor],
    ) -> Tensor:
        """The loss of both crops over all scales, divided by scales and points as upstream does.

        Parameters
        ----------
        ori, changed : for each of two crops its three maps of features [batch, channel, z, y, x], coarsest first.
        images : the two undistorted crops [batch, 1, z, y, x].
        ori_places, changed_places : coordinates in mm of their voxels [batch, 3, z, y, x].
        """
        scales = len(ori[0])
        sums = [[ori[0][0].new_zeros(4) for _ in range(scales)] for _ in (0, 1)]
        for _ in range(self.points):
            for crop, voxel in enumerate(self._voxels(images)):
                place = ori_places[crop][:, :, voxel[0], voxel[1], voxel[2]]
                away = (changed_places[crop] - place[:, :, None, None, None]).square().sum(dim=1, keepdim=True).sqrt()
                for scale in range(scales):
                    factor = 2 ** (scales - 1 - scale)
                    sums[crop][scale] = sums[crop][scale] + self._sums(
                        ori[crop][scale], changed[crop][scale], away, voxel, factor
                    )
        # Both means are over all points and all of the batch together.
        terms = [s[0] / s[1].clamp(min=1) + s[2] / s[3].clamp(min=1) for crop in sums for s in crop]
        return -torch.stack(terms).sum() / (scales * self.points)

    def _voxels(self, images: Sequence[Tensor]) -> list[tuple[int, int, int]]:
        """One voxel in each crop, in tissue for more than half of the batch where a few tries find one."""
        found, tries = [], 0
        for image in images:
            sizes = image.shape[2:]
            while True:
                z, y, x = (self.draw(0, int(n) - 1) for n in sizes)
                tries += 1
                inside = (image[:, 0, z, y, x] >= BACKGROUND).float().mean()
                if float(inside) > 0.5 or tries >= 20:
                    break
            found.append((z, y, x))
        return found

    def _sums(self, ori: Tensor, changed: Tensor, away: Tensor, voxel: tuple[int, int, int], factor: int) -> Tensor:
        """Of the voxels of the same place the sum of log p and their number, of those elsewhere the sum of log(1 - p)
        and their number, [4]."""
        z, y, x = (int(v / factor) for v in voxel)
        vector = F.normalize(ori[:, :, z, y, x], dim=1, eps=TINY)
        cosine = torch.einsum("bc,bczyx->bzyx", vector, F.normalize(changed, dim=1, eps=TINY)).flatten(1)
        logs = (self.heat * cosine).log_softmax(dim=1)
        if factor > 1:
            away = F.interpolate(away, scale_factor=1 / factor, mode="trilinear", align_corners=False)
        distance = away.flatten(1)
        near = (distance <= factor * self.near_mm).to(logs.dtype)
        far = (distance >= 2 * factor * self.near_mm).to(logs.dtype)
        elsewhere = torch.log1p(-logs.exp().clamp(max=1 - SURE))
        return torch.stack([(near * logs).sum(), near.sum(), (far * elsewhere).sum(), far.sum()])


class PretrainingLoss(nn.Module):
    """RDR plus EMB, of what the network says of two undistorted and two augmented crops.

    The outputs are :meth:`omlab_medlsam.network.MedLam.forward` with ``out_fc`` and ``out_feature``.
    """

    def __init__(
        self, ratio_mm: Sequence[float] = (1500, 600, 600), points: int = 20, near_mm: float = 3.0, *,
        draw: Draw | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.distance = RelativeDistance(ratio_mm)
        self.embedding = PlaceOfFeatures(points, near_mm, draw=draw)

    def forward(
        self,
        ori: Sequence[Mapping[str, Tensor]],
        changed: Sequence[Mapping[str, Tensor]],
        images: Sequence[Tensor],
        ori_places: Sequence[Tensor],
        changed_places: Sequence[Tensor],
        distance: Tensor,
    ) -> dict[str, Tensor]:
        """``total``, ``rdr``, ``emb`` and ``relative`` [batch, 3], the predicted way in mm."""
        first, second = (o["fc_position"] for o in ori)
        rdr = self.distance(first, second, distance)
        emb = self.embedding(
            [[o[s] for s in SCALES] for o in ori], [[c[s] for s in SCALES] for c in changed], images, ori_places,
            changed_places,
        )  # fmt: skip
        return {"total": rdr + emb, "rdr": rdr, "emb": emb, "relative": self.distance.predicted(first, second)}
