"""The detection network: Endo-FM's transformer as a backbone, a feature pyramid, an FCOS head, and features of
neighbouring frames brought over to the key frame by deformable convolutions.

State-dict names are upstream's. Everything that depends on one frame alone is one part (:class:`FramePart`) and what
joins a key frame with its references another (:class:`JoinPart`), so that no frame of a video is looked at twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_endo_fm.network import VideoTransformer

STRIDES = (8, 16, 32, 64, 128)
OFFSET_GROUPS = 4
#: Pixels of a map that counts as small.
SMALL_MAP = 2000


class Body(VideoTransformer):
    """The transformer with what makes maps of three strides of its patches.

    A frame goes through alone. ``fpn1`` is in upstream's files and takes no part.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        width = self.norm.normalized_shape[0]
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )  # fmt: skip
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2))

    def maps(self, frames: Tensor) -> list[Tensor]:
        """[frame, 3, row, column] to maps of stride 8, 16 and 32. Every frame by itself; while training, the frames
        are one clip."""
        if self.training:
            patches = self.features(frames.transpose(0, 1)[None])[0]
        else:
            patches = self.features(frames[:, :, None])[:, 0]
        rows, columns = frames.shape[2] // self.patch_size, frames.shape[3] // self.patch_size
        middle = patches.transpose(1, 2).reshape(-1, patches.shape[2], rows, columns)
        return [self.fpn2(middle), middle, F.max_pool2d(middle, 2)]


class Pyramid(nn.Module):
    """Three maps of the body to five of one width."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        for level in (2, 3, 4):
            self.add_module(f"fpn_inner{level}", nn.Conv2d(inside, width, 1))
            self.add_module(f"fpn_layer{level}", nn.Conv2d(width, width, 3, padding=1))
        self.top_blocks = nn.ModuleDict(
            {name: nn.Conv2d(width, width, 3, stride=2, padding=1) for name in ("p6", "p7")}
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        inner: Tensor | None = None
        found: list[Tensor] = []
        for level in (4, 3, 2):
            lateral = self.get_submodule(f"fpn_inner{level}")(maps[level - 2])
            if inner is not None:
                lateral = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            inner = lateral
            found.insert(0, self.get_submodule(f"fpn_layer{level}")(inner))
        found.append(self.top_blocks["p6"](found[-1]))
        found.append(self.top_blocks["p7"](F.relu(found[-1])))
        return found


class Backbone(nn.Module):
    """Body and pyramid."""

    def __init__(self, body: Body, width: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = Pyramid(body.norm.normalized_shape[0], width)

    def forward(self, frames: Tensor) -> list[Tensor]:
        return cast("list[Tensor]", self.fpn(self.body.maps(frames)))


class Scale(nn.Module):
    """One factor, of a level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class FeatureAdaption(nn.Module):
    """Deformable 3x3 convolution whose offsets come from boxes, and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(4, OFFSET_GROUPS * 18, 1, bias=False)
        self.conv_adaption = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Maps [frame, channel, row, column] moved by ``boxes`` [frame, 4, row, column]."""
        with torch.no_grad():
            offsets = self.conv_offset(boxes)
        return F.relu(deformed(x, offsets, self.conv_adaption.weight, OFFSET_GROUPS))


def deformed(x: Tensor, offsets: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Deformable 3x3 convolution with padding 1 (Dai et al. 2017).

    Parameters
    ----------
    x : [frame, channel, row, column].
    offsets : [frame, groups * 18, row, column]; for each group of channels (down, right) of the 9 taps, row by row.
    weight : [channel out, channel, 3, 3].
    """
    frames, channels, rows, columns = x.shape
    grouped = x.reshape(frames * groups, channels // groups, rows, columns)
    y, z = torch.meshgrid(
        torch.arange(rows, dtype=x.dtype, device=x.device), torch.arange(columns, dtype=x.dtype, device=x.device),
        indexing="ij",
    )  # fmt: skip
    steps = torch.tensor([[t // 3 - 1, t % 3 - 1] for t in range(9)], dtype=x.dtype, device=x.device)
    places = torch.stack([y, z])[None] + steps[:, :, None, None]
    # grid_sample takes (right, down), from -1 to 1 between the outer edges of the outermost pixels.
    scale = torch.tensor([2 / columns, 2 / rows], dtype=x.dtype, device=x.device)
    grid = (offsets.reshape(frames * groups, 9, 2, rows, columns) + places).permute(0, 1, 3, 4, 2).flip(-1)
    grid = ((grid + 0.5) * scale - 1).flatten(1, 2)
    filters = weight.flatten(2)
    # Few operations make a small graph; all taps of a large map at once would take too much memory.
    together = 9 if rows * columns <= SMALL_MAP else 3
    total: Tensor | None = None
    for tap in range(0, 9, together):
        part = grid[:, tap * rows : (tap + together) * rows]
        sampled = F.grid_sample(grouped, part, mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = sampled.reshape(frames, channels * together, rows, columns)
        chosen = filters[:, :, tap : tap + together].flatten(1)[:, :, None, None]
        mixed = F.conv2d(sampled, chosen)
        total = mixed if total is None else total + mixed
    assert total is not None
    return total


class Head(nn.Module):
    """Classes, centreness and boxes of a frame; scores and corrections from its neighbours."""

    def __init__(self, width: int = 256, classes: int = 2) -> None:
        super().__init__()
        for name in ("cls_tower", "bbox_tower"):
            layers: list[nn.Module] = []
            for _ in range(4):
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(32, width), nn.ReLU()]
            self.add_module(name, nn.Sequential(*layers))
        self.cls_logits = nn.Conv2d(width, classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(width, 4, 3, padding=1)
        self.centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.dcn_cls_subnet = FeatureAdaption(width)
        self.dcn_bbox_subnet = FeatureAdaption(width)
        self.dcn_cls_score = nn.Conv2d(width, classes, 3, padding=1)
        self.dcn_bbox_pred = nn.Conv2d(width, 4, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in STRIDES)

    def of_frame(self, features: Tensor, level: int) -> dict[str, Tensor]:
        """What one level of frames gives by itself: both towers, ``cls``, ``centerness``, and ``box``, the distances
        (left, top, right, bottom) in pixels."""
        classes = self.get_submodule("cls_tower")(features)
        boxes = self.get_submodule("bbox_tower")(features)
        return {
            "cls_tower": classes, "bbox_tower": boxes,
            "cls": self.cls_logits(classes), "centerness": self.centerness(boxes),
            "box": F.relu(self.scales[level](self.bbox_pred(boxes))) * STRIDES[level],
        }  # fmt: skip

    def join(self, classes: Tensor, boxes: Tensor, distances: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Class logits and box corrections of the key frame, [1, class, row, column] and [1, 4, row, column].

        Parameters
        ----------
        classes, boxes : towers of the key frame and then its references, [frame, channel, row, column].
        distances : ``box`` of the same frames.
        """
        offsets = box_offsets(distances, STRIDES[level])
        offsets = torch.cat([offsets[:1], offsets[:1] - offsets[1:]])
        classes = attend(self.dcn_cls_subnet(classes, offsets))
        boxes = attend(self.dcn_bbox_subnet(boxes, offsets))
        return self.dcn_cls_score(classes), self.dcn_bbox_pred(boxes)


def locations(rows: int, columns: int, stride: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel of each place of a map: x [1, column] and y [row, 1]."""
    x = torch.arange(columns, dtype=like.dtype, device=like.device)[None] * stride + stride // 2
    y = torch.arange(rows, dtype=like.dtype, device=like.device)[:, None] * stride + stride // 2
    return x, y


def corners(distances: Tensor, stride: int) -> Tensor:
    """[frame, 4, row, column]: distances (left, top, right, bottom) of each place to corners (x0, y0, x1, y1)."""
    x, y = locations(distances.shape[2], distances.shape[3], stride, distances)
    left, top, right, bottom = distances.unbind(dim=1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=1)


def box_offsets(distances: Tensor, stride: int) -> Tensor:
    """[frame, 4, row, column]: from each place to the corners of its box, in places of the map and within it."""
    rows, columns = distances.shape[2:]
    x, y = locations(rows, columns, stride, distances)
    x0, y0, x1, y1 = (corners(distances, stride) / stride).unbind(dim=1)
    here_x, here_y = (x / stride).clamp(0, columns - 1), (y / stride).clamp(0, rows - 1)
    across = [edge.clamp(0, columns - 1) - here_x for edge in (x0, x1)]
    down = [edge.clamp(0, rows - 1) - here_y for edge in (y0, y1)]
    return torch.stack([across[0], down[0], across[1], down[1]], dim=1)


def attend(maps: Tensor) -> Tensor:
    """[1 + references, channel, row, column] to the key's [1, channel, row, column]: channel by channel, the
    references are averaged by how much they look like the key, and added."""
    key, references = maps[:1], maps[1:]
    size = maps.shape[2] * maps.shape[3]
    weights = ((key * references).sum(dim=(2, 3), keepdim=True) * size**-0.5).softmax(dim=0)
    return key + (weights * references).sum(dim=0, keepdim=True)


class Region(nn.Module):
    """Upstream's level of names above the head."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head


class Detector(nn.Module):
    """Key frame and references [1 + references, 3, row, column] to the raw outputs of each level."""

    def __init__(self, *, out_channels: int = 256, classes: int = 2, **settings: Any) -> None:
        super().__init__()
        self.backbone = Backbone(Body(**settings), out_channels)
        self.rpn = Region(Head(out_channels, classes))

    def pyramid(self, frames: Tensor) -> list[Tensor]:
        """[frame, channel, row, column] of each level. In one go while training; else one frame after the other, like
        upstream, as sums come out a little different in a batch."""
        if self.training:
            return self.backbone(frames)  # type: ignore[no-any-return]
        found = [self.backbone(frame[None]) for frame in frames]
        return [torch.cat(level) for level in zip(*found, strict=True)]

    def forward(self, frames: Tensor) -> dict[str, list[Tensor]]:
        """Lists over the levels: ``p`` of all frames; ``cls``, ``centerness``, ``box``, ``pre_box`` [1, place, 4],
        ``stft_cls`` and ``stft_box`` of the key frame."""
        names = ("p", "cls", "centerness", "box", "pre_box", "stft_cls", "stft_box")
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for level, features in enumerate(self.pyramid(frames)):
            alone = self.rpn.head.of_frame(features, level)
            classes, boxes = self.rpn.head.join(alone["cls_tower"], alone["bbox_tower"], alone["box"], level)
            found["p"].append(features)
            for name in ("cls", "centerness", "box"):
                found[name].append(alone[name][:1])
            found["pre_box"].append(corners(alone["box"][:1], STRIDES[level]).flatten(2).transpose(1, 2))
            found["stft_cls"].append(classes)
            found["stft_box"].append(boxes)
        return found


#: What :class:`FramePart` gives for each level, in order.
FRAME_OUTPUTS = ("cls_tower", "bbox_tower", "box", "cls", "centerness")


class FramePart(nn.Module):
    """Frames [frame, 3, row, column] to :data:`FRAME_OUTPUTS` of level 3, of level 4, and so on."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.head = network.rpn.head

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for level, features in enumerate(self.backbone(frames)):
            alone = self.head.of_frame(features, level)
            found += [alone[name] for name in FRAME_OUTPUTS]
        return tuple(found)


class JoinPart(nn.Module):
    """``cls_tower``, ``bbox_tower`` and ``box`` of key frame and references, level by level, to ``stft_cls`` and
    ``stft_box`` of each level."""

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.head = network.rpn.head

    # One argument a tensor: an exporter gives each a name and a shape of its own.
    def forward(
        self, cls3: Tensor, bbox3: Tensor, box3: Tensor, cls4: Tensor, bbox4: Tensor, box4: Tensor,
        cls5: Tensor, bbox5: Tensor, box5: Tensor, cls6: Tensor, bbox6: Tensor, box6: Tensor,
        cls7: Tensor, bbox7: Tensor, box7: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        levels = (
            (cls3, bbox3, box3), (cls4, bbox4, box4), (cls5, bbox5, box5), (cls6, bbox6, box6), (cls7, bbox7, box7),
        )  # fmt: skip
        found: list[Tensor] = []
        for level, given in enumerate(levels):
            found += self.head.join(*given, level)
        return tuple(found)
