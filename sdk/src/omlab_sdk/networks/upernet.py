"""UPerNet's heads (Xiao et al. 2018) with the state-dict names of mmsegmentation: pyramid pooling, feature pyramid, and
the auxiliary head of plain convolutions. Features come finest first, [batch, channels, rows, columns] each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Bilinear, to [rows, columns]."""
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=align_corners)


class ConvModule(nn.Module):
    """Convolution without bias that keeps the size, batch norm, ReLU."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class UPerHead(nn.Module):
    """All features to logits [batch, classes, rows, columns] on the grid of the first.

    Parameters
    ----------
    in_channels : of each feature, finest first.
    channels : of everything inside.
    pool_scales : sides to which the coarsest feature is pooled.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, classes: int, *, pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1, align_corners: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.align_corners = align_corners
        last = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(last, channels, 1)) for scale in pool_scales
        )
        self.bottleneck = ConvModule(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(one, channels, 1) for one in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return resize(x, like.shape[2:], align_corners=self.align_corners)

    def _pooled(self, x: Tensor) -> Tensor:
        """The coarsest feature with what pools of several sizes say of its surroundings."""
        return cast(
            Tensor, self.bottleneck(torch.cat([x, *(self._resize(pool(x), x) for pool in self.psp_modules)], 1))
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, features, strict=False)]
        levels.append(self._pooled(features[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + self._resize(levels[i], levels[i - 1])
        refined = [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=False)] + levels[-1:]
        joined = torch.cat([refined[0], *(self._resize(x, refined[0]) for x in refined[1:])], dim=1)
        return cast(Tensor, self.conv_seg(self.dropout(self.fpn_bottleneck(joined))))


class FCNHead(nn.Module):
    """One feature to logits on its own grid: convolutions of 3 x 3, then 1 x 1."""

    def __init__(self, before: int, channels: int, classes: int, *, convs: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(ConvModule(before if i == 0 else channels, channels, 3) for i in range(convs)))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, feature: Tensor) -> Tensor:
        return cast(Tensor, self.conv_seg(self.dropout(self.convs(feature))))
