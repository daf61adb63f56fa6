"""The two networks of deepbet: a LinkNet in 3D, one shape for the bounding box and for the mask.

State-dict names are those of the published TorchScript archives (38 tensors). :class:`LinkNet3d` is the network as
published; :class:`MaskProbability` is what is exported: the same function with the second class's probability only,
arranged so that engines have less to do.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of every instance normalisation; none of them has weights.
EPSILON = 1e-5


def _norm(channels: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(channels, eps=EPSILON)


class Block(nn.Module):
    """Two 3 x 3 x 3 convolutions with a residual; the first one may halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
            _norm(outputs),
            nn.ReLU(),
            nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False),
            _norm(outputs),
        )
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.downsample(x) if hasattr(self, "downsample") else x
        return F.relu(self.double_conv(x) + residual)


class Down(nn.Module):
    """Encoder stage of two blocks."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.block1 = Block(inputs, outputs, stride)
        self.block2 = Block(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block2(self.block1(x)))


class Up(nn.Module):
    """Decoder stage: a transposed convolution between two that change the number of channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = inputs // 4
        self.conv1 = nn.Sequential(nn.Conv3d(inputs, inner, 1, bias=False), _norm(inner), nn.ReLU())
        self.tp_conv = nn.Sequential(
            nn.ConvTranspose3d(inner, inner, 3, stride, 1, output_padding=stride - 1, bias=False), _norm(inner), nn.ReLU()
        )
        self.conv2 = nn.Sequential(nn.Conv3d(inner, outputs, 1, bias=False), _norm(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(self.tp_conv(self.conv1(x))))


class LinkNet3d(nn.Module):
    """[batch, 1, i, j, k] intensities to [batch, 2, i, j, k] probabilities of background and brain.

    Sides must be multiples of 32. ``width`` is the number of channels after the stem (16 as published).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.init = nn.Sequential(nn.Conv3d(1, w, 7, 2, 3, bias=False), _norm(w), nn.ReLU(), nn.MaxPool3d(3, 2, 1))
        self.down0, self.down1 = Down(w, w, 1), Down(w, 2 * w, 2)
        self.down2, self.down3 = Down(2 * w, 4 * w, 2), Down(4 * w, 8 * w, 2)
        self.up0, self.up1 = Up(8 * w, 4 * w, 2), Up(4 * w, 2 * w, 2)
        self.up2, self.up3 = Up(2 * w, w, 2), Up(w, w, 1)
        self.tp_conv1 = nn.Sequential(
            nn.ConvTranspose3d(w, w // 2, 3, 2, 1, output_padding=1), _norm(w // 2), nn.ReLU()
        )
        self.conv = nn.Sequential(nn.Conv3d(w // 2, w // 2, 3, 1, 1), _norm(w // 2), nn.ReLU())
        self.tp_conv2 = nn.ConvTranspose3d(w // 2, 2, 2, 2)

    def features(self, x: Tensor) -> Tensor:
        """All but the last layer: [batch, width / 2, i/2, j/2, k/2]."""
        stem = self.init(x)
        first = self.down0(stem)
        second = self.down1(first)
        third = self.down2(second)
        y = self.up0(self.down3(third)) + third
        y = self.up1(y) + second
        y = self.up2(y) + first
        y = self.up3(y) + stem
        return cast(Tensor, self.conv(self.tp_conv1(y)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.tp_conv2(self.features(x)), 1)


class MaskProbability(nn.Module):
    """[1, 1, i, j, k] intensities to [1, 1, i, j, k] probability of brain, equal to ``LinkNet3d(x)[:, 1:]``.

    Three identities, none an approximation: a soft-max over two classes is the sigmoid of their difference, so the last
    layer's weights are subtracted beforehand; a transposed convolution whose kernel is its stride is a 1 x 1 x 1
    convolution followed by a reshuffle; a bias before an instance normalisation cancels.
    """

    def __init__(self, network: LinkNet3d) -> None:
        super().__init__()
        self.network = network
        last = network.tp_conv2
        weight = (last.weight[:, 1] - last.weight[:, 0]).detach()  # [channels, 2, 2, 2]
        channels = weight.shape[0]
        self.last = nn.Conv3d(channels, 8, 1)
        with torch.no_grad():
            self.last.weight.copy_(weight.reshape(channels, 8).T.reshape(8, channels, 1, 1, 1))
            assert last.bias is not None
            self.last.bias.copy_((last.bias[1] - last.bias[0]).expand(8))  # type: ignore[union-attr]
        for layer in (network.tp_conv1[0], network.conv[0]):
            layer.bias = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.last(self.network.features(x)))
        batch, _, i, j, k = y.shape
        y = y.reshape(batch, 2, 2, 2, i, j, k).permute(0, 4, 1, 5, 2, 6, 3)
        return y.reshape(batch, 1, 2 * i, 2 * j, 2 * k)
