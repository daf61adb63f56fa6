"""PCT-Net (Wang et al. 2023): a pyramid of blocks that convolve and attend side by side.

State-dict names are upstream's, unused parts included. Volumes are [batch, channel, D, H, W], D the slice axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, int, int]
#: Of LayerNorms and batch norms.
EPSILON = 1e-5
#: What is added between tokens of different regions of a window that was rolled together.
APART = -100.0
#: Resolution mode -> dimensions of the convolutions of levels 0 and 1, and of the steps 0 to 1 and 1 to 2.
MODES: Sequence[tuple[tuple[int, int], tuple[int, int]]] = (((3, 3), (3, 3)), ((2, 3), (2, 3)), ((2, 2), (2, 2)))


def _kernel(dimension: int) -> dict[str, Any]:
    return {"kernel_size": 3, "padding": 1} if dimension == 3 else {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}


def stride_of(dimension: int) -> Shape:
    """Of pooling and of transposed convolutions."""
    return (2, 2, 2) if dimension == 3 else (1, 2, 2)


def _activated(channels: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm3d(channels, eps=EPSILON), nn.PReLU(), *after)


class ConvBlock(nn.Module):
    """Norm, activation and convolution twice; no residual."""

    def __init__(self, channels: int, dropout: float, dimension: int = 3) -> None:
        super().__init__()
        self.conv_conv = nn.Sequential(
            nn.BatchNorm3d(channels, eps=EPSILON), nn.PReLU(), nn.Conv3d(channels, channels, **_kernel(dimension)),
            nn.BatchNorm3d(channels, eps=EPSILON), nn.PReLU(), nn.Dropout(dropout),
            nn.Conv3d(channels, channels, **_kernel(dimension)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv_conv(x))


class DownSample(nn.Module):
    """Greatest of neighbours, then more channels."""

    def __init__(self, inputs: int, outputs: int, down: int = 3, dimension: int = 3) -> None:
        super().__init__()
        self.stride = stride_of(down)
        self.conv = _activated(inputs, nn.Conv3d(inputs, outputs, **_kernel(dimension)))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.max_pool3d(x, self.stride, self.stride)))


class UpCatBlock(nn.Module):
    """A coarse map brought up and joined to a fine one."""

    def __init__(self, low: int, high: int, up: int = 3, dimension: int = 3) -> None:
        super().__init__()
        stride = stride_of(up)
        self.up = _activated(high, nn.ConvTranspose3d(high, low, stride, stride))
        self.conv = _activated(2 * low, nn.Conv3d(2 * low, low, **_kernel(dimension)))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return cast(Tensor, self.conv(torch.cat([fine, self.up(coarse)], dim=1)))


class ConvLayer(nn.Module):
    """A head."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _activated(inputs, nn.Conv3d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class WindowAttention(nn.Module):
    """Multi-head attention within windows of w x w x w tokens, with a bias for each relative position.

    The index of the bias has the factor 3 w - 1 where (2 w - 1) squared would make it unique: rows of the table
    collide and most are never read. The published weights were trained with that.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, heads))
        line = torch.arange(window)
        places = torch.stack(torch.meshgrid(line, line, line, indexing="ij")).flatten(1)
        away = places[:, :, None] - places[:, None, :] + window - 1
        index = away[0] * (3 * window - 1) + away[1] * (2 * window - 1) + away[2]
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[windows, tokens, width]; ``mask`` [windows of one volume, tokens, tokens] is added to the scores."""
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(tokens, tokens, self.heads).permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(windows // len(mask), 1, 1, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(windows, -1, -1, -1))
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(windows, tokens, width)))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


def drop_path(x: Tensor, share: float, training: bool) -> Tensor:
    """Leave a branch out for some samples of a batch, and scale up the others."""
    if not training or not share:
        return x
    kept = x.new_empty((x.shape[0], *(1,) * (x.ndim - 1))).bernoulli_(1 - share)
    return x * kept / (1 - share)


class SwinBlock(nn.Module):
    """Attention within windows that every second block shifts by half, on tokens [batch, D x H x W, width].

    Padding to whole windows comes after the norm, so padded tokens are zeros and take part.
    """

    def __init__(self, width: int, resolution: Shape, heads: int, window: int, number: int, dropped: float) -> None:
        super().__init__()
        shift = window // 2 if number % 2 else 0
        if min(resolution) <= window:
            window, shift = min(resolution), 0
        self.resolution, self.window, self.shift, self.dropped = resolution, window, shift, dropped
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = WindowAttention(width, window, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = _Mlp(width)
        whole = cast(Shape, tuple(-(-n // window) * window for n in resolution))
        self.whole = whole
        # Not saved upstream.
        self.register_buffer("apart", _apart(whole, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + drop_path(self.attend(self.norm1(x)), self.dropped, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.dropped, self.training)

    def attend(self, x: Tensor) -> Tensor:
        """Attention of normalised tokens."""
        batch, _, width = x.shape
        d, h, w = self.resolution
        y = x.reshape(batch, d, h, w, width)
        if self.whole != self.resolution:
            ends = [wanted - n for wanted, n in zip(self.whole, self.resolution, strict=True)]
            y = F.pad(y, (0, 0, 0, ends[2], 0, ends[1], 0, ends[0]))
        if self.shift:
            y = _rolled(y, -self.shift)
        y = _from_windows(self.attn(_to_windows(y, self.window), self.apart), batch, self.whole, self.window)
        if self.shift:
            y = _rolled(y, self.shift)
        return y[:, :d, :h, :w].reshape(batch, d * h * w, width)


def _rolled(x: Tensor, by: int) -> Tensor:
    """Rolled along the three axes; written as joins, which every engine has."""
    for axis in (1, 2, 3):
        cut = -by % x.shape[axis]
        first, last = x.split([cut, x.shape[axis] - cut], dim=axis)
        x = torch.cat([last, first], dim=axis)
    return x


def _to_windows(x: Tensor, window: int) -> Tensor:
    """[batch, D, H, W, width] to [batch x windows, window ** 3, width]."""
    batch, d, h, w, width = x.shape
    x = x.reshape(batch, d // window, window, h // window, window, w // window, window, width)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, width)


def _from_windows(x: Tensor, batch: int, shape: Shape, window: int) -> Tensor:
    counts = [n // window for n in shape]
    x = x.reshape(batch, *counts, window, window, window, x.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *shape, x.shape[-1])


def _apart(shape: Shape, window: int, shift: int) -> Tensor:
    """[windows, tokens, tokens]: :data:`APART` between the 27 regions that rolling brings together, else 0."""
    region = torch.zeros(1, *shape, 1)
    for axis, n in enumerate(shape):
        line = torch.zeros(n)
        line[n - window : n - shift] = 1
        line[n - shift :] = 2
        region = region * 3 + line.reshape([-1 if a == axis + 1 else 1 for a in range(5)])
    tokens = _to_windows(region, window)[..., 0]
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, APART)


class _Trans(nn.Module):
    def __init__(self, width: int, resolution: Shape, depth: int, heads: int, window: int, dropped: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(width, resolution, heads, window, n, dropped) for n in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ConvTransBlock(nn.Module):
    """The sum of a convolution block and of attention blocks over the same map."""

    def __init__(
        self, width: int, resolution: Shape, depth: int, heads: int, window: int, dropout: float, dropped: float = 0.2
    ) -> None:
        super().__init__()
        self.conv = ConvBlock(width, dropout)
        self.trans = _Trans(width, resolution, depth, heads, window, dropped)
        #: Without a use, but in upstream's state dict.
        self.norm_layer = nn.LayerNorm(width)

    def tokens(self, x: Tensor) -> Tensor:
        """[batch, channel, D, H, W] to [batch, D x H x W, channel]."""
        return x.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.trans(self.tokens(x))
        return cast(Tensor, self.conv(x) + attended.transpose(1, 2).reshape(x.shape))


class Embedding(nn.Module):
    """Levels 0 to 2 before the pyramid."""

    def __init__(self, inputs: int, widths: Sequence[int], dropout: Sequence[float], mode: int) -> None:
        super().__init__()
        (first, second), (down1, down2) = MODES[mode]
        self.proj = nn.Conv3d(inputs, widths[0], **_kernel(first))
        self.conv0 = ConvBlock(widths[0], dropout[0], first)
        self.down1 = DownSample(widths[0], widths[1], down1, second)
        self.conv1 = ConvBlock(widths[1], dropout[1], second)
        self.down2 = DownSample(widths[1], widths[2], down2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0 = self.conv0(self.proj(x))
        x1 = self.conv1(self.down1(x0))
        return x0, x1, self.down2(x1)


class Pyramid(nn.Module):
    """Levels 2 to 4, down and up again: maps of levels 2 and 3."""

    def __init__(
        self, widths: Sequence[int], resolution: Shape, classes: int, dropout: Sequence[float], depths: Sequence[int],
        heads: Sequence[int], windows: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [cast(Shape, tuple(n >> level for n in resolution)) for level in range(3)]

        def block(level: int) -> ConvTransBlock:
            return ConvTransBlock(
                widths[2 + level], sizes[level], depths[level], heads[level], windows[level], dropout[2 + level]
            )

        self.down3 = DownSample(widths[2], widths[3])
        self.down4 = DownSample(widths[3], widths[4])
        self.convtrans_e2, self.convtrans_e3, self.convtrans_e4 = block(0), block(1), block(2)
        self.up4 = UpCatBlock(widths[3], widths[4])
        self.convtrans_d3 = block(1)
        self.up3 = UpCatBlock(widths[2], widths[3])
        self.convtrans_d2 = block(0)
        self.out_conv3 = ConvLayer(widths[3], classes)
        self.out_conv2 = ConvLayer(widths[2], classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e2 = self.convtrans_e2(x)
        e3 = self.convtrans_e3(self.down3(e2))
        e4 = self.convtrans_e4(self.down4(e3))
        d3 = self.convtrans_d3(self.up4(e3, e4))
        return self.convtrans_d2(self.up3(e2, d3)), d3


class PredHead(nn.Module):
    """Levels 1 and 0 after the pyramid, and their heads."""

    def __init__(self, widths: Sequence[int], classes: int, dropout: Sequence[float], mode: int) -> None:
        super().__init__()
        (first, second), (down1, down2) = MODES[mode]
        self.up2 = UpCatBlock(widths[1], widths[2], down2, second)
        self.conv1 = ConvBlock(widths[1], dropout[1], second)
        self.up1 = UpCatBlock(widths[0], widths[1], down1, first)
        self.conv0 = ConvBlock(widths[0], dropout[0], first)
        self.out_conv1 = ConvLayer(widths[1], classes)
        self.out_conv0 = ConvLayer(widths[0], classes)

    def forward(self, x0: Tensor, x1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor]:
        d1 = self.conv1(self.up2(x1, d2))
        return self.conv0(self.up1(x0, d1)), d1


class PCTNet(nn.Module):
    """[batch, in_chns, *input_size] to logits [batch, class_num, *input_size].

    Parameters
    ----------
    input_size : (D, H, W), the only one that it takes; divisible by the strides, and by 4 more at level 2.
    resolution_mode : 0 for isotropic volumes, 1 for thick slices, 2 for very thick ones.
    multiscale_pred : give the logits of four levels, finest first, as training wants them.
    """

    def __init__(
        self, *, input_size: Sequence[int], in_chns: int = 1, class_num: int = 2,
        feature_chns: Sequence[int] = (32, 64, 128, 256, 512), dropout: Sequence[float] = (0, 0, 0.2, 0.2, 0.2),
        depths: Sequence[int] = (2, 2, 2), num_heads: Sequence[int] = (4, 8, 16),
        window_sizes: Sequence[int] = (6, 6, 6), multiscale_pred: bool = False, resolution_mode: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        down1, down2 = MODES[resolution_mode][1]
        stride = [a * b for a, b in zip(stride_of(down1), stride_of(down2), strict=True)]
        if any(n % (4 * s) for n, s in zip(input_size, stride, strict=True)):
            raise ValueError(
                f"PCT-Net: the input {tuple(input_size)} must be divisible by {tuple(4 * s for s in stride)}"
            )
        self.input_size, self.mode, self.multiscale_pred = tuple(input_size), resolution_mode, multiscale_pred
        resolution = cast(Shape, tuple(n // s for n, s in zip(input_size, stride, strict=True)))
        self.embeddings = nn.ModuleList(Embedding(in_chns, feature_chns, dropout, mode) for mode in range(3))
        self.pyramid_ct = Pyramid(feature_chns, resolution, class_num, dropout, depths, num_heads, window_sizes)
        self.pred_heads = nn.ModuleList(PredHead(feature_chns, class_num, dropout, mode) for mode in range(3))

    def forward(self, x: Tensor) -> Any:
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(f"PCT-Net: takes {self.input_size}, found {tuple(x.shape[2:])}")
        x0, x1, x2 = self.embeddings[self.mode](x)
        d2, d3 = self.pyramid_ct(x2)
        head = cast(PredHead, self.pred_heads[self.mode])
        d0, d1 = head(x0, x1, d2)
        if not self.multiscale_pred:
            return head.out_conv0(d0)
        return [head.out_conv0(d0), head.out_conv1(d1), self.pyramid_ct.out_conv2(d2), self.pyramid_ct.out_conv3(d3)]
