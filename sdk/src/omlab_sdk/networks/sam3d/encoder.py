"""Attention over a grid of voxels, in windows and with relative positions as SAM-Med3D indexes them.

Tokens are [batch, x, y, z, width] throughout. State-dict names are upstream's.
"""

from __future__ import annotations

import math
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.sam.encoder import Block, bands_of, log_sum_exp, table_of


class Attention3d(nn.Module):
    """Multi-head self-attention over a cubic grid.

    The terms of relative positions do not add up as in two dimensions. Upstream lines up their axes wrongly, and the
    published weights were trained with that: from the query q(x, y, z) to the key at (x', y', z') it adds

        q(x, y, z) . Rd[x, z']  +  q(x, y, x') . Rh[y, z']  +  q(x, y, y') . Rw[y', z'].

    The second and the third term take the query vectors along z at the key's x' and y', so they are the same for all z
    of the query, and the grid must be a cube.

    Parameters
    ----------
    grid : side of the grid, of a window where there are windows.
    relative : with tables of relative positions.
    """

    def __init__(self, width: int, heads: int, grid: int, *, qkv_bias: bool = True, relative: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads = heads
        self.relative = relative
        if relative:
            self.rel_pos_d = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention over the whole of [batch, n, n, n, width]."""
        side = x.shape[1]
        if x.shape[1:4] != (side, side, side):
            raise ValueError(f"the grid must be a cube, found {tuple(x.shape[1:4])}")
        return cast(Tensor, self.proj(self._mix(self.qkv(x), side)))

    def padded(self, x: Tensor, window: int) -> Tensor:
        """Attention within windows of a grid [batch, x, y, z, width], padded with zeros at the ends, as upstream
        does it."""
        return from_windows(self(to_windows(x, (window,) * 3)), x.shape[0], cast(tuple[int, ...], x.shape[1:4]))

    def folded(self, x: Tensor, window: int) -> Tensor:
        """The same as :meth:`padded`, without computing the padding.

        Padding comes after the norm, so the query, key and value of every padded token are the bias of ``qkv``. One
        more key stands for all of them: its logit is the logarithm of the sum of what each would weigh. That is exact.
        Padded queries are cut off in the end; only those that position terms of real ones take are put in.
        """
        qkv = self.qkv(x)
        mixed = []
        bands = [bands_of(n, window) for n in x.shape[1:4]]
        for corners in product(*bands):
            part = qkv[:, corners[0][0] : corners[0][1], corners[1][0] : corners[1][1], corners[2][0] : corners[2][1]]
            real = tuple(min(window, high - low) for low, high in corners)
            windows = self._mix(to_windows(part, real), window)
            mixed.append(from_windows(windows, x.shape[0], cast(tuple[int, ...], part.shape[1:4])))
        for axis in (3, 2, 1):  # the last axis runs fastest
            count = len(bands[axis - 1])
            mixed = [torch.cat(mixed[n : n + count], dim=axis) for n in range(0, len(mixed), count)]
        return cast(Tensor, self.proj(mixed[0]))

    def _mix(self, qkv: Tensor, window: int) -> Tensor:
        """[windows, x, y, z, 3 width], the real tokens of windows of side ``window``, to [windows, x, y, z, width]."""
        windows, *real, triple = qkv.shape
        tokens = math.prod(real)
        query, key, value = (
            part.reshape(windows, tokens, self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        padded = window**3 - tokens
        bias = extra = None
        if self.relative:
            bias, extra = self._bias(query, real, window)
        elif padded:
            bias = query.new_zeros(1, 1, 1, tokens)
            extra = query.new_full((1, 1, 1, 1), math.log(padded))
        if bias is not None and extra is not None:
            bias = torch.cat([bias, extra], dim=-1)
            key = torch.cat([key, self._padding(key, 1)], dim=2)
            value = torch.cat([value, self._padding(value, 2)], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return mixed.transpose(1, 2).reshape(windows, *real, triple // 3)

    def _padding(self, like: Tensor, part: int) -> Tensor:
        """What a padded token has as query (part 0), key (1) or value (2): [windows, heads, 1, depth]."""
        windows, heads, _, depth = like.shape
        if self.qkv.bias is None:
            return like.new_zeros(windows, heads, 1, depth)
        return self.qkv.bias.reshape(3, 1, heads, 1, depth)[part].expand(windows, -1, -1, -1)

    def _bias(self, query: Tensor, real: list[int], window: int) -> tuple[Tensor, Tensor | None]:
        """What positions add to the logits, from queries before they are scaled.

        Returns
        -------
        Towards the real keys [windows, heads, tokens, tokens], and towards the one that stands for all padded ones
        [windows, heads, tokens, 1]; ``None`` where none are padded.
        """
        windows, heads, tokens, depth = query.shape
        nx, ny, nz = real
        grid = query.reshape(windows, heads, nx, ny, nz, depth)
        # Along z the queries of the whole window are taken, padding included.
        line = grid
        if nz < window:
            padding = self._padding(query, 0).reshape(windows, heads, 1, 1, 1, depth)
            line = torch.cat([grid, padding.expand(-1, -1, nx, ny, window - nz, -1)], dim=4)
        # Keys on the last axis: own is of the query (x, y, z), along_x and along_y of (x, y) and the key's x' or y'.
        own = grid @ table_of(self.rel_pos_d, window)[:nx, None].transpose(2, 3)
        along_x = line @ table_of(self.rel_pos_h, window)[:ny].transpose(1, 2)
        along_y = (line.transpose(3, 4) @ table_of(self.rel_pos_w, window).transpose(1, 2)).transpose(3, 4)
        across = along_x[..., :nx, None, :nz] + along_y[..., None, :ny, :nz]  # [..., x, y, x', y', z']
        bias = own[..., None, None, :nz] + across[:, :, :, :, None]
        bias = bias.reshape(windows, heads, tokens, tokens)
        if (nx, ny, nz) == (window, window, window):
            return bias, None
        weight = _padding_across(along_x, along_y, real, window)  # [..., x, y, z']
        extra = _log_sum(own[..., window - weight.shape[-1] :] + weight[..., None, :], -1)
        return bias, extra.reshape(windows, heads, tokens, 1)


def _padding_across(along_x: Tensor, along_y: Tensor, real: list[int], window: int) -> Tensor:
    """Logarithm of the sum over the padded keys of a plane z' of the exponential of their two terms that the query's z
    has no part in, [..., x, y, z']; of the last planes alone where the others have no padding.

    Of a plane of padding all x' and y' count; of another one those from the real x' on, and of the real x' those from
    the real y' on. Nothing is subtracted, so no digit is lost.
    """
    nx, ny, nz = real
    parts = []
    if nx < window or ny < window:
        x, y = along_x[..., :nz], along_y[..., :nz]
        outside = []
        if nx < window:
            outside.append(_log_sum(x[..., nx:, :], -2) + _log_sum(y, -2))
        if ny < window:
            outside.append(_log_sum(x[..., :nx, :], -2) + _log_sum(y[..., ny:, :], -2))
        parts.append(outside[0] if len(outside) == 1 else _log_sum(torch.stack(outside), 0))
    if nz < window:
        parts.append(_log_sum(along_x[..., nz:], -2) + _log_sum(along_y[..., nz:], -2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _log_sum(x: Tensor, axis: int) -> Tensor:
    """Logarithm of the sum of exponentials over ``axis``, which goes away."""
    return log_sum_exp(x.movedim(axis, -1))[..., 0]


class Block3d(Block):
    """Transformer block of a volume; ``window`` 0 attends over the whole grid."""

    attention = Attention3d


def to_windows(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """[batch, x, y, z, width] to [batch x windows, *size, width], windows in C order; padded with zeros at the ends
    where they do not fit."""
    batch, *grid, channels = x.shape
    counts = [-(-n // s) for n, s in zip(grid, size, strict=True)]
    ends = [c * s - n for n, s, c in zip(grid, size, counts, strict=True)]
    if any(ends):
        x = F.pad(x, (0, 0, 0, ends[2], 0, ends[1], 0, ends[0]))
    if counts == [1, 1, 1]:
        return x
    x = x.reshape(batch, counts[0], size[0], counts[1], size[1], counts[2], size[2], channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, *size, channels)


def from_windows(windows: Tensor, batch: int, grid: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`to_windows`, padding cut off."""
    _, *size, channels = windows.shape
    counts = [-(-n // s) for n, s in zip(grid, size, strict=True)]
    x = windows
    if counts != [1, 1, 1]:
        x = windows.reshape(batch, *counts, *size, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(batch, *(c * s for c, s in zip(counts, size, strict=True)), channels)
    return x[:, : grid[0], : grid[1], : grid[2]]
