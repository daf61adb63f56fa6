"""The network: a residual U-Net of six stages whose depth and width scale (Huang et al., arXiv:2304.06716).

State-dict names are upstream's. The decoder multiplies by its 1 x 1 x 1 convolution before it repeats the voxels, which
gives the same numbers as upstream's other order and an eighth of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.steady import steady as steady
from omlab_stunet.plan import SAMPLE, SIZES, STRIDES

STAGES = 6
SLOPE = 0.01
EPSILON = 1e-5


def _same(kernel: Sequence[int]) -> tuple[int, ...]:
    return tuple(k // 2 for k in kernel)


class Block(nn.Module):
    """Two convolutions with a residual; ``shortcut``: a 1 x 1 x 1 convolution on the residual, with the stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], *, shortcut: bool
    ) -> None:
        super().__init__()
        size = tuple(kernel)
        self.conv1 = nn.Conv3d(inputs, outputs, size, tuple(stride), _same(size))  # type: ignore[arg-type]
        self.norm1 = nn.InstanceNorm3d(outputs, eps=EPSILON, affine=True)
        self.conv2 = nn.Conv3d(outputs, outputs, size, 1, _same(size))  # type: ignore[arg-type]
        self.norm2 = nn.InstanceNorm3d(outputs, eps=EPSILON, affine=True)
        if shortcut:
            self.conv3 = nn.Conv3d(inputs, outputs, 1, tuple(stride))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + (self.conv3(x) if hasattr(self, "conv3") else x), SLOPE)


def _stage(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], depth: int) -> nn.Sequential:
    first = Block(inputs, outputs, kernel, stride, shortcut=True)
    return nn.Sequential(first, *(Block(outputs, outputs, kernel, (1, 1, 1), shortcut=False) for _ in range(depth - 1)))


class Upsample(nn.Module):
    """Fewer channels by a 1 x 1 x 1 convolution, then every voxel repeated ``factors`` times along each axis."""

    def __init__(self, inputs: int, outputs: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1)
        self.factors = tuple(int(f) for f in factors)

    def forward(self, x: Tensor) -> Tensor:
        return repeat_voxels(self.conv(x), self.factors)


def repeat_voxels(x: Tensor, factors: Sequence[int]) -> Tensor:
    """[batch, channel, i, j, k] with every voxel repeated along the three axes: nearest-neighbour upsampling."""
    a, b, c = factors
    batch, channels, i, j, k = x.shape
    wide = x[:, :, :, None, :, None, :, None].expand(batch, channels, i, a, j, b, k, c)
    return wide.reshape(batch, channels, i * a, j * b, k * c)


class STUNet(nn.Module):
    """[batch, channels, a, b, c] to logits [batch, classes, a, b, c]; sides divisible by the product of the strides.

    Parameters
    ----------
    input_channels, num_classes : the background counts as a class.
    depth : blocks of each of the six stages.
    dims : channels of each stage.
    pool_op_kernel_sizes : five strides; the first stage has none.
    conv_kernel_sizes : of the six stages.
    enable_deep_supervision : return the logits of all five decoder stages, finest first, each at its own resolution.
    """

    def __init__(
        self,
        input_channels: int = 1,
        num_classes: int = 105,
        *,
        depth: Sequence[int] = SIZES["small"]["depth"],
        dims: Sequence[int] = SIZES["small"]["dims"],
        pool_op_kernel_sizes: Sequence[Sequence[int]] = STRIDES,
        conv_kernel_sizes: Sequence[Sequence[int]] = ((3, 3, 3),) * STAGES,
        enable_deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        for name, given, count in (
            ("depth", depth, STAGES), ("dims", dims, STAGES), ("conv_kernel_sizes", conv_kernel_sizes, STAGES),
            ("pool_op_kernel_sizes", pool_op_kernel_sizes, STAGES - 1),
        ):  # fmt: skip
            if len(given) != count:
                raise ValueError(f"STU-Net: {name} has {len(given)} entries, expected {count}")
        self.deep_supervision = enable_deep_supervision
        self.conv_blocks_context = nn.ModuleList()
        before = input_channels
        for d, stride in enumerate([(1, 1, 1), *pool_op_kernel_sizes]):
            self.conv_blocks_context.append(_stage(before, dims[d], conv_kernel_sizes[d], stride, depth[d]))
            before = dims[d]
        self.upsample_layers = nn.ModuleList()
        self.conv_blocks_localization = nn.ModuleList()
        self.seg_outputs = nn.ModuleList()
        for u in range(STAGES - 1):
            width = dims[-2 - u]
            self.upsample_layers.append(Upsample(dims[-1 - u], width, pool_op_kernel_sizes[-1 - u]))
            self.conv_blocks_localization.append(
                _stage(2 * width, width, conv_kernel_sizes[-2 - u], (1, 1, 1), depth[-2 - u])
            )
            self.seg_outputs.append(nn.Conv3d(width, num_classes, 1))

    def encoded(self, x: Tensor) -> list[Tensor]:
        """Outputs of the six encoder stages, finest first."""
        found = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            found.append(x)
        return found

    def decoded(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the five decoder stages, coarsest first."""
        found = []
        x = encoded[-1]
        for u, (up, stage) in enumerate(zip(self.upsample_layers, self.conv_blocks_localization, strict=True)):
            x = stage(torch.cat([up(x), encoded[-2 - u]], dim=1))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Any:
        decoded = self.decoded(self.encoded(x))
        if not self.deep_supervision:
            return cast(Tensor, self.seg_outputs[-1](decoded[-1]))
        return tuple(head(y) for head, y in zip(reversed(self.seg_outputs), reversed(decoded), strict=True))


class Windowed(nn.Module):
    """The network as the pipeline runs it: the last layer is left to the stitching, which needs no memory for it.

    [1, channels, a, b, c] to features [1, a, b, c, n] of the finest decoder stage (the order in which engines keep
    them, so nothing is turned); the head's weight [classes, n] and bias [classes]; and logits of every fourth voxel
    along each axis, by which engines are compared with the reference.
    """

    def __init__(self, network: STUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        head = cast(nn.Conv3d, self.network.seg_outputs[-1])
        features = self.network.decoded(self.network.encoded(x))[-1].permute(0, 2, 3, 4, 1)
        weight = head.weight.flatten(1)
        assert head.bias is not None
        sampled = features[:, ::SAMPLE, ::SAMPLE, ::SAMPLE]
        # A constant cannot be an output of an exported graph, a sum is one in every engine.
        return features, weight + 0, head.bias + 0, F.linear(sampled, weight, head.bias).permute(0, 4, 1, 2, 3)


def initialise(network: STUNet, *, kaiming: bool = True) -> STUNet:
    """Weights as a trainer of nnU-Net v1 starts with, in place: Kaiming normal for the leaky ReLU, biases zero.
    Without ``kaiming`` those of v2: PyTorch's own."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            if kaiming:
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            else:
                module.reset_parameters()
    return network
