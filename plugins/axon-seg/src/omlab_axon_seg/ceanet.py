"""CEA-Net: two brain regions in a slice, from a ResNet-34 with dilations, pyramid pooling and an attention gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Smaller sides leave nothing for the pooling over six positions of the coarsest level.
LEAST_SIDE = 192


class _Block(nn.Module):
    """Basic block of a ResNet."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + kept)


def _layer(channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels if n == 0 else width, width, stride if n == 0 else 1) for n in range(count)))


class _Dilations(nn.Module):
    """What is seen at three distances, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dilate1, self.dilate2, self.dilate3 = (
            nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 3, 5)
        )
        self.conv1x1 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.dilate1(x)
        second = self.conv1x1(self.dilate2(x))
        third = self.conv1x1(self.dilate2(first))
        fourth = self.conv1x1(self.dilate3(self.dilate2(first)))
        return x + F.relu(first) + F.relu(second) + F.relu(third) + F.relu(fourth)


class _Pyramid(nn.Module):
    """Maxima over windows of four sizes, one channel each, before the channels themselves."""

    sizes = (2, 3, 5, 6)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        pooled = [
            F.interpolate(self.conv(F.max_pool2d(x, k, k)), size, mode="bilinear", align_corners=False)
            for k in self.sizes
        ]
        return torch.cat([*pooled, x], dim=1)


class _Gate(nn.Module):
    """How much of each place goes on."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner))
        self.W_x = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.psi(F.relu(self.W_g(x) + self.W_x(x))) * x  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """Twice as large along each axis."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner)
        self.deconv2 = nn.ConvTranspose2d(inner, inner, 3, 2, 1, 1)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.deconv2(x)))
        return F.relu(self.norm3(self.conv3(x)))


class CEANet(nn.Module):
    """Slices to logits of regions.

    Parameters
    ----------
    num_classes, num_channels : regions, and channels of a slice.
    """

    def __init__(self, num_classes: int = 2, num_channels: int = 1) -> None:
        super().__init__()
        self.firstconv = nn.Conv2d(num_channels, 64, 7, 2, 3, bias=False)
        self.firstbn = nn.BatchNorm2d(64)
        self.encoder1, self.encoder2 = _layer(64, 64, 3, 1), _layer(64, 128, 4, 2)
        self.encoder3, self.encoder4 = _layer(128, 256, 6, 2), _layer(256, 512, 3, 2)
        self.dblock, self.spp, self.att = _Dilations(512), _Pyramid(512), _Gate(516, 256)
        self.decoder4, self.decoder3 = _Decoder(516, 256), _Decoder(256, 128)
        self.decoder2, self.decoder1 = _Decoder(128, 64), _Decoder(64, 64)
        self.finaldeconv1 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.finalconv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.finalconv3 = nn.Conv2d(32, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, num_channels, row, column], sides multiples of 32 from 192 on, to logits [batch, num_classes, row,
        column].

        Raises
        ------
        ValueError
            The sides are others.
        """
        if any(n % 32 or n < LEAST_SIDE for n in x.shape[2:]):
            raise ValueError(f"sides are multiples of 32 from {LEAST_SIDE} on, found {tuple(x.shape[2:])}")
        x = F.max_pool2d(F.relu(self.firstbn(self.firstconv(x))), 3, 2, 1)
        e1 = self.encoder1(x)
        e2 = self.encoder2(e1)
        e3 = self.encoder3(e2)
        x = self.att(self.spp(self.dblock(self.encoder4(e3))))
        x = self.decoder4(x) + e3
        x = self.decoder3(x) + e2
        x = self.decoder1(self.decoder2(x) + e1)
        x = F.relu(self.finalconv2(F.relu(self.finaldeconv1(x))))
        return self.finalconv3(x)  # type: ignore[no-any-return]
