"""Attention along one axis of a volume after another (Ho et al. 2019), with learned positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AxialPositionalEmbedding(nn.Module):
    """Adds one learned vector for the place along each axis.

    Parameters
    ----------
    dim : channels.
    shape : positions along each axis.
    """

    def __init__(self, dim: int, shape: Sequence[int]) -> None:
        super().__init__()
        self._axes = len(shape)
        for axis, size in enumerate(shape):
            sides = [size if a == axis else 1 for a in range(self._axes)]
            setattr(self, f"param_{axis}", nn.Parameter(torch.randn(1, dim, *sides)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, dim, *shape] to the same."""
        for axis in range(self._axes):
            x = x + getattr(self, f"param_{axis}")
        return x


class SelfAttention(nn.Module):
    """Self-attention with several heads over tokens [batch, token, dim]."""

    def __init__(self, dim: int, heads: int, dim_heads: int | None = None) -> None:
        super().__init__()
        self.heads, self.width = heads, dim_heads or dim // heads
        hidden = self.heads * self.width
        self.to_q = nn.Linear(dim, hidden, bias=False)
        self.to_kv = nn.Linear(dim, 2 * hidden, bias=False)
        self.to_out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (self._split(part) for part in (self.to_q(x), key, value))
        weights = ((q @ k.transpose(-2, -1)) * self.width**-0.5).softmax(dim=-1)
        joined = (weights @ v).transpose(1, 2).flatten(2)
        return self.to_out(joined)  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        """[batch, token, hidden] to [batch, head, token, width]."""
        return x.unflatten(2, (self.heads, self.width)).transpose(1, 2)


class _Along(nn.Module):
    """Attention over the positions of one axis; all other axes are batch."""

    def __init__(self, fn: nn.Module, axis: int, channel: int) -> None:
        super().__init__()
        self.fn, self.axis, self.channel = fn, axis, channel

    def forward(self, x: Tensor) -> Tensor:
        moved = x.movedim((self.axis, self.channel), (-2, -1))
        tokens = moved.flatten(0, -3)
        return self.fn(tokens).reshape(moved.shape).movedim((-2, -1), (self.axis, self.channel))  # type: ignore[no-any-return]


class AxialAttention(nn.Module):
    """Self-attention along every axis.

    Parameters
    ----------
    dim : channels.
    num_dimensions : axes besides batch and channel.
    heads, dim_heads : number of heads and width of one; ``dim // heads`` without.
    dim_index : which axis is that of the channels.
    sum_axial_out : the outputs of the axes are added; else each takes the output of the one before.
    """

    def __init__(
        self, dim: int, num_dimensions: int = 3, heads: int = 8, dim_heads: int | None = None, dim_index: int = 1,
        sum_axial_out: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        channel = dim_index % (num_dimensions + 2)
        axes = [axis for axis in range(1, num_dimensions + 2) if axis != channel]
        self.sum_axial_out = sum_axial_out
        self.axial_attentions = nn.ModuleList(
            _Along(SelfAttention(dim, heads, dim_heads), axis, channel) for axis in axes
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, dim, *positions] (or with the channels at ``dim_index``) to the same."""
        if self.sum_axial_out:
            return torch.stack([along(x) for along in self.axial_attentions]).sum(0)
        for along in self.axial_attentions:
            x = along(x)
        return x
