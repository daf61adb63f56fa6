"""The image encoder of Segment Anything: a vision transformer with windows and relative positions.

Tokens are [batch, row, column, width] throughout. State-dict names are upstream's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of the LayerNorms of the blocks and of every ChannelNorm.
EPSILON = 1e-6


#: Of pictures and of volumes, by the number of their axes.
CONVOLUTIONS: Mapping[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel or voxel, [batch, channel, ...]."""

    def __init__(self, channels: int, eps: float = EPSILON) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        scale = (centred.square().mean(dim=1, keepdim=True) + self.eps).sqrt()
        ones = (1,) * (x.ndim - 2)
        return centred / scale * self.weight.reshape(-1, *ones) + self.bias.reshape(-1, *ones)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.lin2(F.gelu(self.lin1(x))))


class Attention(nn.Module):
    """Multi-head self-attention over a grid, with relative positions that rows and columns add up from.

    Parameters
    ----------
    grid : rows and columns of the grid, of a window where there are windows.
    relative : with tables of relative positions.
    """

    def __init__(self, width: int, heads: int, grid: int, *, qkv_bias: bool = True, relative: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.relative = relative
        if relative:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Attention over the whole of [batch, row, column, width]."""
        batch, rows, columns, width = x.shape
        query, key, value = self._split(self.qkv(x))
        bias = None
        if self.relative:
            down, across = self._bias(query, rows, columns, rows, columns)
            bias = (down[..., :, None] + across[..., None, :]).flatten(-2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, rows, columns, width)))

    def padded(self, x: Tensor, window: int) -> Tensor:
        """Attention within windows of a grid [batch, row, column, width], padded with zeros, as upstream does it."""
        windows = self(to_windows(x, window, window))
        return from_windows(windows, x.shape[0], x.shape[1], x.shape[2])

    def folded(self, x: Tensor, window: int) -> Tensor:
        """The same as :meth:`padded`, without computing the padding.

        Upstream pads the grid with zeros to whole windows after the norm, so the key and the value of every padded
        token are the bias of ``qkv``. One more key stands for all of them: its logit is the logarithm of the sum of
        what each would weigh. That is exact. Padded queries are cut off in the end and are not computed at all.
        """
        rows, columns = x.shape[1], x.shape[2]
        qkv = self.qkv(x)
        bands = []
        for top, bottom in bands_of(rows, window):
            parts = [
                self._windows(
                    qkv[:, top:bottom, left:right], min(window, bottom - top), min(window, right - left), window
                )
                for left, right in bands_of(columns, window)
            ]
            bands.append(torch.cat(parts, dim=2))
        return cast(Tensor, self.proj(torch.cat(bands, dim=1)))

    def _windows(self, qkv: Tensor, rows: int, columns: int, window: int) -> Tensor:
        """Windows of which ``rows`` x ``columns`` tokens are real, of one part of the grid, mixed."""
        batch, height, width = qkv.shape[0], qkv.shape[1], qkv.shape[2]
        query, key, value = self._split(to_windows(qkv, rows, columns))
        padded = window * window - rows * columns
        bias = extra = None
        if self.relative:
            down, across = self._bias(query, rows, columns, window, window)
            bias = (down[..., :rows, None] + across[..., None, :columns]).flatten(-2)
            extra = _weight_of_padding(down, across, rows, columns) if padded else None
        if padded:
            if bias is None or extra is None:
                bias = query.new_zeros(*query.shape[:3], rows * columns)
                extra = query.new_full((*query.shape[:3], 1), math.log(padded))
            bias = torch.cat([bias, extra], dim=-1)
            key = torch.cat([key, self._padding(key, 1)], dim=2)
            value = torch.cat([value, self._padding(value, 2)], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(-1, rows, columns, qkv.shape[3] // 3)
        return from_windows(mixed, batch, height, width)

    def _padding(self, like: Tensor, part: int) -> Tensor:
        """What a padded token has as query (part 0), key (1) or value (2): [windows, heads, 1, depth]."""
        windows, heads, _, depth = like.shape
        if self.qkv.bias is None:
            return like.new_zeros(windows, heads, 1, depth)
        return self.qkv.bias.reshape(3, 1, heads, 1, depth)[part].expand(windows, -1, -1, -1)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, row, column, 3 x width] to query, key and value, [batch, head, token, depth] each."""
        batch, rows, columns, triple = qkv.shape
        parts = qkv.reshape(batch, rows * columns, 3, self.heads, triple // 3 // self.heads).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]

    def _bias(self, query: Tensor, rows: int, columns: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What positions add to the logits, from the query before it is scaled.

        Of the ``rows`` x ``columns`` first tokens of a grid of ``height`` x ``width`` towards every row
        [batch, head, token, height] and every column [batch, head, token, width]; a key gets the sum of its two.
        """
        batch, heads, tokens, depth = query.shape
        grid = query.reshape(batch, heads, rows, columns, depth)
        down = grid @ table_of(self.rel_pos_h, height)[:rows].transpose(1, 2)
        across = (grid.transpose(2, 3) @ table_of(self.rel_pos_w, width)[:columns].transpose(1, 2)).transpose(2, 3)
        return down.reshape(batch, heads, tokens, height), across.reshape(batch, heads, tokens, width)


def _weight_of_padding(down: Tensor, across: Tensor, rows: int, columns: int) -> Tensor:
    """Logarithm of the sum over padded keys of the exponential of their position terms, [batch, head, token, 1].

    Padding are the rows from ``rows`` on, and of the rows before them the columns from ``columns`` on. Sums are taken
    apart by rows and columns, and nothing is subtracted, so no digit is lost.
    """
    parts = []
    if rows < down.shape[-1]:
        parts.append(log_sum_exp(down[..., rows:]) + log_sum_exp(across))
    if columns < across.shape[-1]:
        parts.append(log_sum_exp(down[..., :rows]) + log_sum_exp(across[..., columns:]))
    return parts[0] if len(parts) == 1 else log_sum_exp(torch.cat(parts, dim=-1))


def log_sum_exp(x: Tensor) -> Tensor:
    """Over the last axis, which stays. Written out: not every engine takes the greatest out of its own operator, and
    an exponential would overflow at 89."""
    greatest = x.amax(dim=-1, keepdim=True)
    return greatest + (x - greatest).exp().sum(dim=-1, keepdim=True).log()


def table_of(positions: Tensor, size: int) -> Tensor:
    """[query, key, depth] of the rows of ``positions`` at query - key; a table for another size is resampled."""
    if positions.shape[0] != 2 * size - 1:
        positions = F.interpolate(positions.T[None], size=2 * size - 1, mode="linear")[0].T
    index = torch.arange(size, device=positions.device)
    return positions[index[:, None] - index[None, :] + size - 1]


def bands_of(size: int, window: int) -> list[tuple[int, int]]:
    """Where whole windows lie along a side, and the rest."""
    whole = size // window * window
    return [band for band in ((0, whole), (whole, size)) if band[0] < band[1]]


def to_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """[batch, row, column, width] to [batch x windows, rows, columns, width], windows row by row; padded with zeros
    at the bottom and right where they do not fit."""
    batch, height, width, channels = x.shape
    down, across = -(-height // rows), -(-width // columns)
    if down * rows != height or across * columns != width:
        x = F.pad(x, (0, 0, 0, across * columns - width, 0, down * rows - height))
    x = x.reshape(batch, down, rows, across, columns, channels).transpose(2, 3)
    return x.reshape(batch * down * across, rows, columns, channels)


def from_windows(windows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`to_windows`, padding cut off."""
    _, rows, columns, channels = windows.shape
    down, across = -(-height // rows), -(-width // columns)
    x = windows.reshape(batch, down, across, rows, columns, channels).transpose(2, 3)
    return x.reshape(batch, down * rows, across * columns, channels)[:, :height, :width]


class Block(nn.Module):
    """Transformer block; ``window`` 0 attends over the whole grid.

    Attributes
    ----------
    attention : class of the attention.
    folding : leave the padding of windows out (the same answer, faster); without it as upstream computes it.
    """

    attention: ClassVar[Callable[..., Any]] = Attention

    def __init__(
        self, width: int, heads: int, grid: int, window: int, *, mlp_ratio: float = 4, qkv_bias: bool = True,
        relative: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.window, self.folding = window, True
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = self.attention(width, heads, window or grid, qkv_bias=qkv_bias, relative=relative)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def attend(self, x: Tensor) -> Tensor:
        """Attention within the block's windows."""
        if not self.window:
            return cast(Tensor, self.attn(x))
        return cast(Tensor, (self.attn.folded if self.folding else self.attn.padded)(x, self.window))

    def widen(self, x: Tensor) -> Tensor:
        """What follows attention: of the normalised tokens, added to them."""
        return cast(Tensor, self.mlp(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.widen(self.norm2(x))


class PatchEmbed(nn.Module):
    """[batch, channel, ...] to tokens [batch, ..., width]."""

    def __init__(self, channels: int, width: int, patch: int, dimensions: int = 2) -> None:
        super().__init__()
        self.proj = CONVOLUTIONS[dimensions](channels, width, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.proj(image).movedim(1, -1))


class ImageEncoder(nn.Module):
    """Normalised image [batch, in_chans, S, S] to embedding [batch, out_chans, S / patch_size, S / patch_size].

    Parameters
    ----------
    dimensions : 2 for pictures; 3 for volumes, which have one more axis of S, with a ``block`` that is made for them.
    global_attn_indexes : blocks that attend over the whole grid.
    block : class of the blocks, for encoders that add something to each.
    """

    def __init__(
        self, *, img_size: int = 1024, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, depth: int = 12,
        num_heads: int = 12, mlp_ratio: float = 4, out_chans: int = 256, window_size: int = 14,
        global_attn_indexes: Sequence[int] = (2, 5, 8, 11), qkv_bias: bool = True, use_abs_pos: bool = True,
        use_rel_pos: bool = True, dimensions: int = 2, block: Callable[..., Block] = Block,
    ) -> None:  # fmt: skip
        super().__init__()
        grid = img_size // patch_size
        if img_size % patch_size:
            raise ValueError(f"an image of {img_size} pixels cannot be cut into patches of {patch_size}")
        self.img_size, self.grid = img_size, grid
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, dimensions)
        self.positioned = use_abs_pos
        if use_abs_pos:
            self.pos_embed = nn.Parameter(torch.zeros(1, *[grid] * dimensions, embed_dim))
        self.blocks = nn.ModuleList(
            block(
                embed_dim, num_heads, grid, 0 if number in global_attn_indexes else window_size,
                mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, relative=use_rel_pos,
            )
            for number in range(depth)
        )  # fmt: skip
        convolution = CONVOLUTIONS[dimensions]
        self.neck = nn.Sequential(
            convolution(embed_dim, out_chans, 1, bias=False), ChannelNorm(out_chans),
            convolution(out_chans, out_chans, 3, padding=1, bias=False), ChannelNorm(out_chans),
        )  # fmt: skip

    def tokens(self, image: Tensor) -> Tensor:
        """Input of the first block."""
        x = self.patch_embed(image)
        return cast(Tensor, x + self.pos_embed if self.positioned else x)

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.neck(x.movedim(-1, 1)))
