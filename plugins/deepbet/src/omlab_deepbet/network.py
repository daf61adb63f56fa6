"""The two networks of deepbet: a LinkNet in 3D, one shape for the bounding box and for the mask.

State-dict names are those of the published TorchScript archives (38 tensors). :class:`LinkNet3d` is the network as
published; :class:`MaskProbability` is what is exported: the same function, arranged so that engines have
less to do.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of every instance normalisation; none of them has weights.
EPSILON = 1e-5
#: Mean of the intensities that the networks are given.
INPUT_MEAN = 0.449


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
            nn.ConvTranspose3d(inner, inner, 3, stride, 1, output_padding=stride - 1, bias=False),
            _norm(inner),
            nn.ReLU(),
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

    def decoded(self, stem: Tensor) -> Tensor:
        """Encoder and decoder at a quarter of the input's resolution and below: [batch, width, i/4, j/4, k/4]."""
        first = self.down0(stem)
        second = self.down1(first)
        third = self.down2(second)
        y = self.up0(self.down3(third)) + third
        y = self.up1(y) + second
        y = self.up2(y) + first
        return cast(Tensor, self.up3(y) + stem)

    def features(self, x: Tensor) -> Tensor:
        """All but the last layer: [batch, width / 2, i/2, j/2, k/2]."""
        return cast(Tensor, self.conv(self.tp_conv1(self.decoded(self.init(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.tp_conv2(self.features(x)), 1)


def fold_stem(weight: Tensor) -> Tensor:
    """Weights of the stem for an input whose neighbours along k are channels: [o, 1, 7, 7, 7] to [o, 2, 7, 7, 4].

    Tap t of the stride-2 convolution looks at voxel 2 n + t - 3: voxel (t + 1) % 2 of pair n + (t + 1) // 2 - 2.
    """
    taps = F.pad(weight[:, 0], (1, 0)).unflatten(-1, (4, 2))
    return taps.movedim(-1, 1).contiguous()


def pair_transposed(weight: Tensor) -> Tensor:
    """Weights of a stride-2 transposed convolution that gives both voxels of a pair along k as channels.

    [inputs, o, 3, 3, 3] to [inputs, 2 o, 3, 3, 2] with stride 1 along k: voxel 2 n is tap 1 of input n; voxel 2 n + 1
    is tap 2 of input n and tap 0 of input n + 1.
    """
    even = torch.stack((torch.zeros_like(weight[..., 1]), weight[..., 1]), -1)
    odd = torch.stack((weight[..., 0], weight[..., 2]), -1)
    return torch.cat((even, odd), 1)


def pair_convolution(weight: Tensor) -> Tensor:
    """Weights that give both voxels of a pair along k as channels: [o, c, 3, 3, 3] to [2 o, c, 3, 3, 4], stride 2."""
    return torch.cat((F.pad(weight, (0, 1)), F.pad(weight, (1, 0))), 0)


def pair_last(weight: Tensor) -> Tensor:
    """Weights of the last layer (one output, kernel = stride = 2) on pairs: [c, 2, 2, 2] to [16, 2 c, 1, 1, 1].

    The 16 outputs are the voxels of a block of 2 x 2 x 4, in C order.
    """
    channels = weight.shape[0]
    block = weight.new_zeros(2, 2, 2, 2, 2, channels)  # i, j, pair, k, pair of the input, channel
    for pair in range(2):
        block[:, :, pair, :, pair] = weight.permute(1, 2, 3, 0)
    return block.reshape(16, 2 * channels, 1, 1, 1)


class MaskProbability(nn.Module):
    """[1, 1, i, j, k] intensities to [1, i/2, j/2, k/4, 16] probabilities of brain.

    The same function as ``LinkNet3d(x)[:, 1]``, cut into blocks of 2 x 2 x 4 voxels (:func:`blocks_to_volume` undoes
    it), arranged so that engines have less to do. Nothing is an approximation:

    - a soft-max over two classes is the sigmoid of their difference, so the last layer's weights are subtracted
      beforehand, and a transposed convolution whose kernel is its stride is a convolution of one voxel;
    - a bias before an instance normalisation cancels: two are left out, and the stem gets one that brings its mean near
      zero, so that the variance can be taken from the mean square without a loss of digits;
    - normalisation and ReLU are increasing, so the pooling goes before them: an eighth of the voxels is normalised;
    - at the finest resolution there are eight channels, half of what a vector register holds. Two neighbours along k
      become channels, which costs no copy where channels lie last in memory, and the output stays in that layout.
    """

    def __init__(self, network: LinkNet3d) -> None:
        super().__init__()
        self.network = network
        last = network.tp_conv2
        with torch.no_grad():
            self.stem = nn.Parameter(fold_stem(network.init[0].weight))
            self.centre = nn.Parameter(-INPUT_MEAN * network.init[0].weight.sum((1, 2, 3, 4)))
            self.up = nn.Parameter(pair_transposed(network.tp_conv1[0].weight))
            self.smooth = nn.Parameter(pair_convolution(network.conv[0].weight))
            self.last = nn.Parameter(pair_last(last.weight[:, 1] - last.weight[:, 0]))
            assert last.bias is not None
            self.bias = nn.Parameter((last.bias[1] - last.bias[0]).repeat(16))

    def forward(self, x: Tensor) -> Tensor:
        network = self.network
        pairs = channels_first(x.reshape(1, x.shape[2], x.shape[3], x.shape[4] // 2, 2))
        raw = F.conv3d(F.pad(pairs, (2, 1, 3, 2, 3, 2)), self.stem, self.centre, stride=(2, 2, 1))
        stem = normalised(F.max_pool3d(raw, 3, 2, 1), *moments(raw))
        y = F.conv_transpose3d(
            F.pad(network.decoded(stem), (0, 1)), self.up, stride=(2, 2, 1), padding=1, output_padding=(1, 1, 0)
        )
        y = normalised(y, *of_pairs(*moments(y)))
        single = channels_last(y)
        single = single.reshape(1, single.shape[1], single.shape[2], 2 * single.shape[3], single.shape[4] // 2)
        y = F.conv3d(F.pad(channels_first(single), (1, 1, 1, 1, 1, 1)), self.smooth, stride=(1, 1, 2))
        y = normalised(y, *of_pairs(*moments(y)))
        return channels_last(torch.sigmoid(F.conv3d(y, self.last, self.bias)))


def channels_last(x: Tensor) -> Tensor:
    """[batch, c, i, j, k] to [batch, i, j, k, c]."""
    return x.permute(0, 2, 3, 4, 1)


def channels_first(x: Tensor) -> Tensor:
    """[batch, i, j, k, c] to [batch, c, i, j, k]."""
    return x.permute(0, 4, 1, 2, 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each channel, [1, c, 1, 1, 1] each.

    One axis after the other: engines sum in float32, and two million numbers in a row lose four digits.
    """
    mean = x
    norm = torch.linalg.vector_norm(x, dim=4, keepdim=True)
    square = norm * norm / x.shape[4]
    for axis in (4, 3, 2):
        mean = mean.mean(axis, keepdim=True)
    for axis in (3, 2):
        square = square.mean(axis, keepdim=True)
    return mean, square


def of_pairs(mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of channels that are spread over pairs, from those of each half."""
    mean, square = (m.unflatten(1, (2, m.shape[1] // 2)).mean(1) for m in (mean, square))
    return torch.cat((mean, mean), 1), torch.cat((square, square), 1)


def normalised(x: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """Instance normalisation by given moments, then ReLU."""
    return F.relu((x - mean) * torch.rsqrt(square - mean * mean + EPSILON))


def blocks_to_volume(blocks: Tensor) -> Tensor:
    """[1, i/2, j/2, k/4, 16] to [1, 1, i, j, k]."""
    _, i, j, k, _ = blocks.shape
    return blocks.reshape(1, i, j, k, 2, 2, 4).permute(0, 1, 4, 2, 5, 3, 6).reshape(1, 1, 2 * i, 2 * j, 4 * k)
