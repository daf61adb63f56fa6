"""FMUNet (Wang et al. 2025): a U-Net of residual convolutions that pre-training by Volume Fusion suits.

State-dict names are upstream's. Volumes are [batch, channel, D, H, W], D the slice axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01
EPSILON = 1e-5
LEVELS = 5
#: Resolution mode -> dimensions of levels 0 and 1; the others have three.
MODES: Sequence[tuple[int, int]] = ((3, 3), (2, 3), (2, 2))


def _kernel(dimension: int) -> dict[str, Any]:
    return {"kernel_size": 3, "padding": 1} if dimension == 3 else {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}


def _scale(dimension: int) -> tuple[int, int, int]:
    return (2, 2, 2) if dimension == 3 else (1, 2, 2)


def _activated(channels: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.InstanceNorm3d(channels, eps=EPSILON, affine=True), nn.LeakyReLU(SLOPE), *after)


class ResConv(nn.Module):
    """Convolutions, each added to what it is made of."""

    def __init__(self, channels: int, depth: int, dropout: float, dimension: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            _activated(channels, nn.Dropout(dropout), nn.Conv3d(channels, channels, **_kernel(dimension)))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.conv_list:
            x = conv(x) + x
        return x


class DownSample(nn.Module):
    """A strided convolution."""

    def __init__(self, inputs: int, outputs: int, dimension: int) -> None:
        super().__init__()
        self.down = _activated(inputs, nn.Conv3d(inputs, outputs, stride=_scale(dimension), **_kernel(dimension)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(x))


class Upsample(nn.Module):
    """Linear interpolation whose corners are the corners of the input."""

    def __init__(self, scale: tuple[int, int, int]) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        size = [int(n * s) for n, s in zip(x.shape[2:], self.scale, strict=True)]
        return F.interpolate(x, size, mode="trilinear", align_corners=True)


class UpCat(nn.Module):
    """A coarse map brought up and joined to a fine one."""

    def __init__(self, low: int, high: int, dimension: int) -> None:
        super().__init__()
        self.up = _activated(high, nn.Conv3d(high, low, 1), Upsample(_scale(dimension)))
        self.conv = _activated(2 * low, nn.Conv3d(2 * low, low, **_kernel(dimension)))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return cast(Tensor, self.conv(torch.cat([fine, self.up(coarse)], dim=1)))


class Encoder(nn.Module):
    """Maps of all levels, finest first."""

    def __init__(self, widths: Sequence[int], depth: int, dropout: Sequence[float], dimensions: Sequence[int]) -> None:
        super().__init__()
        for k in range(LEVELS):
            self.add_module(f"en_conv{k}", ResConv(widths[k], depth, dropout[k], dimensions[k]))
        for k in range(LEVELS - 1):
            self.add_module(f"down{k}", DownSample(widths[k], widths[k + 1], dimensions[k]))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.get_submodule("en_conv0")(x)]
        for k in range(LEVELS - 1):
            found.append(self.get_submodule(f"en_conv{k + 1}")(self.get_submodule(f"down{k}")(found[-1])))
        return found


class Decoder(nn.Module):
    """Maps of all levels, finest first."""

    def __init__(self, widths: Sequence[int], depth: int, dropout: Sequence[float], dimensions: Sequence[int]) -> None:
        super().__init__()
        for k in range(LEVELS):
            self.add_module(f"de_conv{k}", ResConv(widths[k], depth, dropout[k], dimensions[k]))
        for k in range(LEVELS - 1):
            self.add_module(f"upcat{k}", UpCat(widths[k], widths[k + 1], dimensions[k]))

    def forward(self, encoded: Sequence[Tensor]) -> list[Tensor]:
        found = [self.get_submodule(f"de_conv{LEVELS - 1}")(encoded[-1])]
        for k in reversed(range(LEVELS - 1)):
            joined = self.get_submodule(f"upcat{k}")(found[0], encoded[k])
            found.insert(0, self.get_submodule(f"de_conv{k}")(joined))
        return found


class FMUNet(nn.Module):
    """[batch, in_chns, D, H, W] to logits [batch, class_num, D, H, W]; sides divisible by :attr:`divisor`.

    Parameters
    ----------
    res_mode : 0 for isotropic volumes, 1 for thick slices, 2 for very thick ones.
    multiscale_pred : in training, the logits of four levels, finest first.
    """

    def __init__(
        self, *, in_chns: int = 1, class_num: int = 2, feature_chns: Sequence[int] = (32, 64, 128, 256, 512),
        dropout: float = 0.2, res_mode: int = 0, depth: int = 2, multiscale_pred: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(feature_chns) != LEVELS:
            raise ValueError(f"FMUNet: feature_chns has {len(feature_chns)} entries, expected {LEVELS}")
        dimensions = (*MODES[res_mode], 3, 3, 3)
        dropped = (0.0, 0.0, dropout, dropout, dropout)
        self.multiscale_pred = multiscale_pred
        #: Whether ``forward`` gives all levels: ``"train"`` or ``"test"``.
        self.stage = "train"
        scales = [_scale(d) for d in dimensions[:-1]]
        self.divisor = tuple(2 ** sum(s[axis] == 2 for s in scales) for axis in range(3))
        self.project = nn.Conv3d(in_chns, feature_chns[0], **_kernel(dimensions[0]))
        self.encoder = Encoder(feature_chns, depth, dropped, dimensions)
        self.decoder = Decoder(feature_chns, depth, dropped, dimensions)
        self.out_layers = nn.ModuleList(
            _activated(feature_chns[k], nn.Conv3d(feature_chns[k], class_num, **_kernel(dimensions[k])))
            for k in range(LEVELS - 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def set_stage(self, stage: str) -> FMUNet:
        """``"train"``: all levels, if ``multiscale_pred``; ``"test"``: the finest alone. Returns itself."""
        self.stage = stage
        return self

    def forward(self, x: Tensor) -> Any:
        wrong = [n for n, d in zip(x.shape[2:], self.divisor, strict=True) if n % d]
        if wrong:
            raise ValueError(f"FMUNet: sides must be divisible by {self.divisor}, found {tuple(x.shape[2:])}")
        decoded = self.decoder(self.encoder(self.project(x)))
        if self.multiscale_pred and self.stage == "train":
            return [head(y) for head, y in zip(self.out_layers, decoded, strict=False)]
        return self.out_layers[0](decoded[0])
