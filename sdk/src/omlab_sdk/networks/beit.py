"""Attention with relative positions, as in BEiT (Bao et al. 2022), for square grids of patches.

A pair of patches gets a learned number for each head that depends on how far apart they are. With a class token there
are three more: class to patch, patch to class, class to itself.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.vit import Attention


def relative_index(grid: int, *, class_token: bool = True) -> Tensor:
    """[tokens, tokens] int64: the table's row for each query and key, patches row by row, the class token in front.

    Rows of the table: ``(2 * grid - 1)^2`` offsets, row offset first; then class query, class key, both.
    """
    side = 2 * grid - 1
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    index = (rows[:, None] - rows[None] + grid - 1) * side + columns[:, None] - columns[None] + grid - 1
    if class_token:
        index = F.pad(index, (1, 0, 1, 0))
        index[0, :], index[:, 0], index[0, 0] = side**2, side**2 + 1, side**2 + 2
    return index


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """[heads, tokens, tokens]: what is added to the scores of all pairs."""
    return F.embedding(index, table).permute(2, 0, 1)


class RelativePositions(nn.Module):
    """The table and its index; ``forward`` gives the bias [heads, tokens, tokens] of all pairs.

    Parameters
    ----------
    index : one that another module of the same grid holds, so that it is kept once.
    """

    def __init__(self, grid: int, heads: int, *, class_token: bool = True, index: Tensor | None = None) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3 * class_token, heads))
        index = relative_index(grid, class_token=class_token) if index is None else index
        self.register_buffer("relative_position_index", index)

    def forward(self) -> Tensor:
        return position_bias(self.relative_position_bias_table, cast(Tensor, self.relative_position_index))


class RelativeAttention(Attention):
    """Self-attention with relative positions of its own, and a bias of queries and values but not of keys.

    Parameters
    ----------
    grid : patches along a side; ``None`` has no positions of its own.
    qkv_bias : with ``q_bias`` and ``v_bias``.
    index : see :class:`RelativePositions`.
    """

    def __init__(
        self, width: int, heads: int, *, grid: int | None, qkv_bias: bool = False, class_token: bool = True,
        index: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(width, heads, qkv_bias=False)
        self.biased, self.relative = qkv_bias, grid is not None
        if qkv_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        if grid is not None:
            positions = RelativePositions(grid, heads, class_token=class_token, index=index)
            # Held flat: upstream's names have no level for them.
            self.relative_position_bias_table = positions.relative_position_bias_table
            self.register_buffer("relative_position_index", positions.relative_position_index)

    def project(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]) if self.biased else None
        return F.linear(x, self.qkv.weight, bias)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.relative:
            own = position_bias(self.relative_position_bias_table, cast(Tensor, self.relative_position_index))
            bias = own if bias is None else own + bias
        return super().forward(x, bias)
