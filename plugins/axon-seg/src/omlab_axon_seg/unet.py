"""The older network of D-LMBmap (option ``net = unet``): a residual U-Net of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE, _DROPOUT = 0.01, 0.3


def _conv(channels: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(channels, outputs, kernel, stride, kernel // 2, bias=False)


def _norm(channels: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(channels, eps=1e-5)


def _act() -> nn.LeakyReLU:
    return nn.LeakyReLU(_SLOPE)


def _up(x: Tensor) -> Tensor:
    """Twice as large along each axis by repetition; a broadcast, which engines do faster than resizing."""
    b, c, d, h, w = x.shape
    grown = x[:, :, :, None, :, None, :, None].expand(b, c, d, 2, h, 2, w, 2)
    return grown.reshape(b, c, 2 * d, 2 * h, 2 * w)


class UNet(nn.Module):
    """Four levels down and up, outputs of two coarser levels added.

    Parameters
    ----------
    in_channels, n_classes : channels in, logits out; of one class the sigmoid is its probability.
    base_n_filter : channels of the finest level.
    """

    def __init__(self, in_channels: int = 1, n_classes: int = 1, base_n_filter: int = 8) -> None:
        super().__init__()
        b = base_n_filter
        self.conv3d_c1_1, self.conv3d_c1_2 = _conv(in_channels, b), _conv(b, b)
        self.lrelu_conv_c1 = nn.Sequential(_act(), _conv(b, b))
        self.norm = nn.ModuleList(_norm(b * 2**level) for level in range(4))
        self.dropout = nn.Dropout3d(_DROPOUT)
        for level in range(2, 6):
            width = b * 2 ** (level - 1)
            setattr(self, f"conv3d_c{level}", _conv(width // 2, width, stride=2))
            setattr(self, f"norm_lrelu_conv_c{level}", nn.Sequential(_norm(width), _act(), _conv(width, width)))
        for number in range(4):
            width = b * 2 ** (4 - number)
            setattr(
                self,
                f"norm_lrelu_upscale_conv_norm_lrelu_l{number}",
                nn.ModuleDict({"0": _norm(width), "3": _conv(width, width // 2), "4": _norm(width // 2)}),
            )
        self.conv3d_l0 = _conv(8 * b, 8 * b, 1)
        self.norm_l0 = _norm(8 * b)
        for number in range(1, 5):
            width = b * 2 ** (5 - number)
            setattr(self, f"conv_norm_lrelu_l{number}", nn.Sequential(_conv(width, width), _norm(width), _act()))
            setattr(self, f"conv3d_l{number}", _conv(width, width // 2 if number < 4 else n_classes, 1))
        self.ds2_1x1_conv3d, self.ds3_1x1_conv3d = _conv(8 * b, n_classes, 1), _conv(4 * b, n_classes, 1)
        # Entries of upstream's files that nothing uses.
        self.final_conv = nn.Conv3d(8 * b, 8 * b, (1, 5, 5))
        self.linear1, self.linear2, self.bn = nn.Linear(8192, 1024), nn.Linear(1024, 1), nn.BatchNorm1d(1024)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, D, H, W], sides multiples of 16, to [batch, n_classes, D, H, W].

        Raises
        ------
        ValueError
            A side is no multiple of 16.
        """
        if any(n % 16 for n in x.shape[2:]):
            raise ValueError(f"sides are multiples of 16, found {tuple(x.shape[2:])}")
        contexts, x = self._down(x)
        x = self._rise(0, x)
        x = _leaky(self.norm_l0(self.conv3d_l0(x)))
        added: Tensor | None = None
        for number in range(1, 5):
            x = getattr(self, f"conv_norm_lrelu_l{number}")(torch.cat([x, contexts[4 - number]], dim=1))
            if number == 2:
                added = _up(self.ds2_1x1_conv3d(x))
            elif number == 3:
                assert added is not None
                added = _up(added + self.ds3_1x1_conv3d(x))
            x = getattr(self, f"conv3d_l{number}")(x)
            if number < 4:
                x = self._rise(number, x)
        assert added is not None
        found = x + added
        return found

    def _down(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The four levels that are kept, finest first, and the coarsest."""
        residual = self.conv3d_c1_1(x)
        x = self.lrelu_conv_c1(self.dropout(self.conv3d_c1_2(_leaky(residual)))) + residual
        contexts = [_leaky(x)]
        x = _leaky(self.norm[0](x))
        for level in range(2, 6):
            residual = getattr(self, f"conv3d_c{level}")(x)
            block = getattr(self, f"norm_lrelu_conv_c{level}")
            x = block(self.dropout(block(residual))) + residual
            if level < 5:
                x = _leaky(self.norm[level - 1](x))
                contexts.append(x)
        return contexts, x

    def _rise(self, number: int, x: Tensor) -> Tensor:
        parts = getattr(self, f"norm_lrelu_upscale_conv_norm_lrelu_l{number}")
        return _leaky(parts["4"](parts["3"](_up(_leaky(parts["0"](x))))))


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)
