"""MedLAM: where in the body a patch of CT lies, and what each voxel looks like. State-dict names are upstream's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Edge of the centre of a patch, in voxels of full size, that kernels are cut from.
CENTRE = 8
SCALES = ("feature0", "feature1", "feature2")
#: Least norm that features are divided by.
TINY = 1e-12


class Depthwise(nn.Module):
    """A convolution a channel, then one across channels."""

    def __init__(self, cin: int, cout: int, dilation: int) -> None:
        super().__init__()
        self.conv1_1_depth = nn.Conv3d(cin, cin, 3, padding=dilation, dilation=dilation, groups=cin)
        self.conv1_1_point = nn.Conv3d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv1_1_point(self.conv1_1_depth(x)))


class Convolution(nn.Module):
    """The convolution of a unit under the name that upstream gives it."""

    def __init__(self, cin: int, cout: int, dilation: int) -> None:
        super().__init__()
        self.Conv = nn.Conv3d(cin, cout, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.Conv(x))


class DepthwiseConvolution(nn.Module):
    """Likewise, of a depthwise unit."""

    def __init__(self, cin: int, cout: int, dilation: int) -> None:
        super().__init__()
        self.Conv = Depthwise(cin, cout, dilation)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.Conv(x))


class Unit(nn.Module):
    """Convolution of 3 x 3 x 3 with bias, normalisation, ReLU.

    Parameters
    ----------
    norm : ``"in"``, instance normalisation without parameters and running statistics, or ``"bn"``.
    depth : depthwise and pointwise in place of a full convolution.
    """

    def __init__(self, cin: int, cout: int, *, norm: str = "in", depth: bool = False, dilation: int = 1) -> None:
        super().__init__()
        if norm not in ("in", "bn"):
            raise ValueError(f"a unit is normalised by 'in' or 'bn', found '{norm}'")
        model = nn.Sequential()
        model.add_module("conv1_1", (DepthwiseConvolution if depth else Convolution)(cin, cout, dilation))
        model.add_module("norm1_1", nn.BatchNorm3d(cout) if norm == "bn" else nn.InstanceNorm3d(cout))
        model.add_module("relu1_1", nn.ReLU())
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model(x))


class MedLam(nn.Module):
    """A patch to its place in the body and to three maps of features.

    Parameters
    ----------
    inc : channels of the input.
    patch_size : sides (z, y, x) that the position head takes, multiples of 16.
    n_classes : channels of the classification head, which localisation does not use.
    base_chns : b; levels have 2b, 2b, 4b, 8b and 16b channels.
    droprate : of the bottleneck, in training.
    """

    def __init__(
        self, *, inc: int = 1, patch_size: Sequence[int] = (64, 64, 64), n_classes: int = 3, base_chns: int = 24,
        droprate: float = 0.0, norm: str = "in", depth: bool = False, dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if any(n % 16 or n < 32 for n in patch_size):
            raise ValueError(f"sides of a patch are multiples of 16 from 32 on, found {tuple(patch_size)}")
        b = base_chns

        def unit(cin: int, cout: int, spread: int = dilation) -> Unit:
            return Unit(cin, cout, norm=norm, depth=depth, dilation=spread)

        half = math.ceil(dilation / 2)
        self.patch_size = tuple(patch_size)
        self.conv0_1, self.conv0_2 = unit(inc, 2 * b), unit(2 * b, 2 * b)
        self.conv1_1, self.conv1_2 = unit(2 * b, 2 * b), unit(2 * b, 2 * b)
        self.conv2_1, self.conv2_2 = unit(2 * b, 2 * b), unit(2 * b, 4 * b)
        self.conv3_1, self.conv3_2 = unit(4 * b, 4 * b), unit(4 * b, 8 * b)
        self.conv4_1, self.conv4_2 = unit(8 * b, 8 * b, half), unit(8 * b, 16 * b, half)
        self.conv5_1, self.conv5_2 = unit(24 * b, 8 * b), unit(8 * b, 8 * b)
        self.conv6_1, self.conv6_2 = unit(12 * b, 4 * b), unit(4 * b, 4 * b)
        self.conv7_1, self.conv7_2 = unit(6 * b, 4 * b), unit(4 * b, 4 * b)
        self.conv8_1, self.conv8_2 = unit(6 * b, 4 * b), unit(4 * b, 4 * b)
        self.drop = nn.Dropout(droprate)
        self.classification = nn.Sequential(nn.Conv3d(4 * b, n_classes, 1))
        # Three linear maps on top of each other, without anything between, as upstream has it.
        self.fc1 = nn.Linear(16 * b * math.prod(patch_size) // 4096, 8 * b)
        self.fc2 = nn.Linear(8 * b, 4 * b)
        self.fc3 = nn.Linear(4 * b, 3)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """[batch, inc, z, y, x] to the skips of levels 0 to 3 and the bottleneck (1/16)."""
        s0 = self.conv0_2(self.conv0_1(image))
        s1 = self.conv1_2(self.conv1_1(F.max_pool3d(s0, 2)))
        s2 = self.conv2_2(self.conv2_1(F.max_pool3d(s1, 2)))
        s3 = self.conv3_2(self.conv3_1(F.max_pool3d(s2, 2)))
        z = self.conv4_2(self.conv4_1(F.max_pool3d(s3, 2)))
        return s0, s1, s2, s3, self.drop(z)

    def position(self, z: Tensor) -> Tensor:
        """Bottleneck of a patch to [batch, 3]; 1500, 600, 600 mm times the hyperbolic tangent of a difference is the
        way from one patch to another along z, y, x."""
        return cast(Tensor, self.fc3(self.fc2(self.fc1(z.flatten(1)))))

    def decode(self, s0: Tensor, s1: Tensor, s2: Tensor, s3: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """The first decoder level (1/8), then features at 1/4, 1/2 and full size."""
        up5 = self.conv5_2(self.conv5_1(_joined(z, s3)))
        feature0 = self.conv6_2(self.conv6_1(_joined(up5, s2)))
        feature1 = self.conv7_2(self.conv7_1(_joined(feature0, s1)))
        feature2 = self.conv8_2(self.conv8_1(_joined(feature1, s0)))
        return up5, feature0, feature1, feature2

    def forward(
        self, image: Tensor, *, out_fc: bool = False, decoder: bool = True, out_feature: bool = False,
        out_classification: bool = True, feature_norm: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What is asked for by name: ``fc_position``, ``feature0`` to ``feature2`` and ``prob``."""
        *skips, z = self.encode(image)
        found = {"fc_position": self.position(z)} if out_fc else {}
        if not decoder:
            return found
        _, *features = self.decode(*skips, z)  # type: ignore[call-arg]
        if out_feature:
            kept = [F.normalize(f, dim=1, eps=TINY) for f in features] if feature_norm else features
            found |= dict(zip(SCALES, kept, strict=True))
        if out_classification:
            found["prob"] = self.classification(features[-1]).sigmoid()
        return found


def _joined(x: Tensor, skip: Tensor) -> Tensor:
    """Twice as large, with the skip behind it."""
    up = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
    return torch.cat([up, skip], dim=1)


def edges(scales: int = 3) -> tuple[int, ...]:
    """Edges of the kernels of feature0, feature1, feature2."""
    return tuple(2 * int(CENTRE / 2 * 2.0 ** (i - 2)) for i in range(scales))


def centre(features: Tensor, edge: int) -> Tensor:
    """Unit features of the middle ``edge`` voxels, [batch, channel, edge, edge, edge]."""
    middle = [slice(n // 2 - edge // 2, n // 2 - edge // 2 + edge) for n in features.shape[2:]]
    return F.normalize(features[:, :, middle[0], middle[1], middle[2]], dim=1, eps=TINY)


def correlated(features: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlation of [1, channel, z, y, x] with [1, channel, k, k, k] (k even), zeros beyond the edge: one map
    of [1, 1, z + 1, y + 1, x + 1].

    One matrix product a plane of the kernel, and sums along shifted diagonals: a convolution of one output channel
    would unfold every voxel into channel * k^3 numbers, 54 GB for the finest map, on most engines.
    """
    channels, k = kernel.shape[1], kernel.shape[2]
    size = tuple(int(n) for n in features.shape[2:])
    flat = features.reshape(channels, -1)
    total = None
    for plane in range(k):
        weights = kernel[0, :, plane].reshape(channels, k * k).transpose(0, 1)
        maps = (weights @ flat).reshape(k, k, *size)
        # Over the columns of the kernel, then over its rows: the axis of taps is the first but one at the end.
        maps = _diagonal(maps.permute(0, 2, 3, 1, 4))  # [row tap, z, y, x]
        maps = _diagonal(maps.permute(1, 3, 0, 2)).transpose(1, 2)  # [z, y, x]
        below = k // 2 - plane
        placed = F.pad(maps, (0, 0, 0, 0, max(0, below), 0))[max(0, -below) :]
        lacking = size[0] + 1 - placed.shape[0]
        placed = F.pad(placed, (0, 0, 0, 0, 0, lacking)) if lacking > 0 else placed[: size[0] + 1]
        total = placed if total is None else total + placed
    assert total is not None
    return total[None, None]


def _diagonal(maps: Tensor) -> Tensor:
    """[..., tap, n] to the sums over taps t of entry i + t - taps / 2, [..., n + 1].

    Rows of n + taps, read as rows of one more, are each shifted by one against the one before.
    """
    *lead, taps, n = (int(s) for s in maps.shape)
    reach = n + 2 * taps
    padded = F.pad(maps, (taps, taps)).reshape(*lead, taps * reach)
    skewed = F.pad(padded, (0, taps)).reshape(*lead, taps, reach + 1)
    # Row t now holds what was t places further right.
    return skewed[..., taps - taps // 2 : taps - taps // 2 + n + 1].sum(dim=-2)


class Position(nn.Module):
    """What is exported as ``position``: patches [n, 1, z, y, x] to places [n, 3]."""

    def __init__(self, medlam: MedLam) -> None:
        super().__init__()
        self.medlam = medlam

    def forward(self, patches: Tensor) -> Tensor:
        return self.medlam.position(self.medlam.encode(patches)[-1])


class Describe(nn.Module):
    """What is exported as ``describe``: a patch [1, 1, z, y, x] to its place and the kernels of its centre."""

    def __init__(self, medlam: MedLam) -> None:
        super().__init__()
        self.medlam = medlam

    def forward(self, patch: Tensor) -> tuple[Tensor, ...]:
        *skips, z = self.medlam.encode(patch)
        _, *features = self.medlam.decode(*skips, z)  # type: ignore[call-arg]
        kernels = (centre(f, edge) for f, edge in zip(features, edges(), strict=True))
        return (self.medlam.position(z), *kernels)


class Match(nn.Module):
    """What is exported as ``match``: a patch and kernels to how much each voxel looks like their centre.

    The map is 1 plus the mean correlation of unit features at each scale; a kernel of zeros leaves its scale out.
    """

    def __init__(self, medlam: MedLam) -> None:
        super().__init__()
        self.medlam = medlam

    def forward(self, patch: Tensor, kernel0: Tensor, kernel1: Tensor, kernel2: Tensor) -> Tensor:
        """[1, 1, z, y, x] to [1, z, y, x]."""
        *skips, z = self.medlam.encode(patch)
        _, *features = self.medlam.decode(*skips, z)  # type: ignore[call-arg]
        size = [int(n) for n in patch.shape[2:]]
        found = torch.ones(1, *size, dtype=patch.dtype, device=patch.device)
        for feature, kernel in zip(features, (kernel0, kernel1, kernel2), strict=True):
            score = correlated(F.normalize(feature, dim=1, eps=TINY), kernel) / kernel.shape[2] ** 3
            found = found + F.interpolate(score, size=size, mode="trilinear", align_corners=False)[:, 0]
        return found
