"""What the detection network learns of a key frame: its boxes by itself (FCOS, Tian et al. 2019), and how neighbours
correct them (STFT). Needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_endo_fm.detection import STRIDES, locations

#: Greatest distance from a place to an edge of its box, by level: above the first and up to the second.
RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf))
#: Only places so near to the middle of a box are its own, in strides.
RADIUS = 1.5
#: Of a first-stage box and a true one, from which on the second stage learns from it.
OVERLAP = 0.1


class DetectionLoss(nn.Module):
    """The five terms of upstream's loss, each over the number of places that have a box, and their sum.

    ``classes`` and ``stft_classes`` focal; ``boxes`` generalised IoU, weighted by how central a place is in its box;
    ``centerness`` cross-entropy; ``stft_boxes`` smooth L1 of the correction in half sides of the first-stage box.
    """

    def forward(self, outputs: Mapping[str, Sequence[Tensor]], boxes: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """Terms by name, and ``total``.

        Parameters
        ----------
        outputs : of :class:`omlab_endo_fm.detection.Detector`.
        boxes : true boxes of the key frame, [box, 4] (x0, y0, x1, y1) in pixels of what the network saw; may be none.
        kinds : int64 [box], classes from 1.
        """
        scores, stft_scores = _rows(outputs["cls"]), _rows(outputs["stft_cls"])
        before = torch.cat([level[0] for level in outputs["pre_box"]])
        sizes = [(level.shape[2], level.shape[3]) for level in outputs["cls"]]
        wanted, aims = assign(sizes, boxes, kinds)
        found = wanted > 0
        central = centrality(aims[found])
        truth = _corners(_places(sizes, boxes)[0][found], aims[found])
        terms = {
            "classes": focal(scores, wanted),
            "boxes": ((1 - giou(before[found], truth)) * central).sum() / central.sum().clamp(min=1e-6),
            "centerness": F.binary_cross_entropy_with_logits(
                _rows(outputs["centerness"])[found, 0], central, reduction="sum"
            ) / found.sum().clamp(min=1),
        }  # fmt: skip
        terms |= self._second(stft_scores, _rows(outputs["stft_box"]), before.detach(), boxes, kinds)
        return terms | {"total": torch.stack(list(terms.values())).sum()}

    @staticmethod
    def _second(scores: Tensor, corrections: Tensor, before: Tensor, boxes: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """The second stage learns from the first-stage boxes that lie on a true one."""
        wanted = before.new_zeros(len(before), dtype=torch.int64)
        if not len(boxes):
            return {"stft_classes": focal(scores, wanted), "stft_boxes": corrections.sum() * 0}
        overlap, which = iou(before[:, None], boxes[None]).max(dim=1)
        good = overlap >= OVERLAP
        wanted[good] = kinds[which[good]]
        sides = (before[good, 2:] - before[good, :2]).repeat(1, 2)
        aims = (boxes[which[good]] - before[good]) / (0.5 * sides)
        distance = F.smooth_l1_loss(corrections[good], aims, beta=0.11, reduction="sum")
        return {"stft_classes": focal(scores, wanted), "stft_boxes": distance / good.sum().clamp(min=1)}


def assign(sizes: Sequence[tuple[int, int]], boxes: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Which box each place is to find: its class, 0 for none, int64 [place], and the distances (left, top, right,
    bottom) to its edges in pixels, [place, 4]. Of several boxes the smallest.

    Parameters
    ----------
    sizes : (rows, columns) of each level.
    boxes, kinds : see :meth:`DetectionLoss.forward`.
    """
    places, strides, ranges = _places(sizes, boxes)
    if not len(boxes):
        return kinds.new_zeros(len(places)), boxes.new_zeros(len(places), 4)
    away = torch.cat([places[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - places[:, None]], dim=2)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = ((places[:, None] - middle[None]).abs() < RADIUS * strides[:, None, None]).all(dim=2)
    greatest = away.amax(dim=2)
    fits = near & (away.amin(dim=2) > 0) & (greatest > ranges[:, :1]) & (greatest <= ranges[:, 1:])
    sides = boxes[:, 2:] - boxes[:, :2]
    area, which = torch.where(fits, sides.prod(dim=1)[None], math.inf).min(dim=1)
    return torch.where(area < math.inf, kinds[which], 0), away[torch.arange(len(places)), which]


def focal(scores: Tensor, wanted: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017) of logits [place, class] and classes from 1, 0 for none, [place]; over the number of
    places that have a class."""
    truth = F.one_hot(wanted, scores.shape[1] + 1)[:, 1:].to(scores.dtype)
    chance = scores.sigmoid()
    right = chance * truth + (1 - chance) * (1 - truth)
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    return (weight * (1 - right) ** gamma * entropy).sum() / (wanted > 0).sum().clamp(min=1)


def centrality(distances: Tensor) -> Tensor:
    """[place]: 1 in the middle of a box, 0 at its edge, of distances (left, top, right, bottom) [place, 4]."""
    across, down = distances[:, [0, 2]], distances[:, [1, 3]]
    return ((across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))).sqrt()


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] that broadcast; 0 where there is no area."""
    return _overlap(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes [..., 4] that broadcast."""
    ratio, union = _overlap(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(dim=-1)
    return ratio - (hull - union) / hull.clamp(min=1e-7)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union."""
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(dim=-1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return shared / union.clamp(min=1e-7), union


def _rows(levels: Sequence[Tensor]) -> Tensor:
    """Maps [1, channel, row, column] of all levels as [place, channel]."""
    return torch.cat([level[0].flatten(1).T for level in levels])


def _places(sizes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all levels: pixel (x, y) [place, 2], stride [place], and the range of distances [place, 2]."""
    places, strides, ranges = [], [], []
    for (rows, columns), stride, limits in zip(sizes, STRIDES, RANGES, strict=True):
        x, y = locations(rows, columns, stride, like)
        places.append(torch.stack([x.expand(rows, columns), y.expand(rows, columns)], dim=-1).reshape(-1, 2))
        strides.append(like.new_full((rows * columns,), stride))
        ranges.append(like.new_tensor(limits).expand(rows * columns, 2))
    return torch.cat(places), torch.cat(strides), torch.cat(ranges)


def _corners(places: Tensor, distances: Tensor) -> Tensor:
    return torch.cat([places - distances[:, :2], places + distances[:, 2:]], dim=1)
