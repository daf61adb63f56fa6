"""The mask decoder: a two-way transformer between prompt tokens and image tokens, and the heads on top."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.sam.encoder import ChannelNorm

#: Added to the logits of keys that take no part; its exponential is zero at every precision.
EXCLUDED = -1e4


class Attention(nn.Module):
    """Attention of ``query`` over ``key``, within ``width`` / ``shrink`` channels."""

    def __init__(self, width: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = width // shrink
        if inner % heads:
            raise ValueError(f"an inner width of {inner} cannot be split among {heads} heads")
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """[batch, tokens, width]; ``bias`` [batch, 1, 1, keys] is added to the logits."""
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        # Written out: with so few tokens a fused kernel gains nothing and costs a digit.
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        shares = (logits if bias is None else logits + bias).softmax(dim=-1)
        mixed = (shares @ v).transpose(1, 2)
        return cast(Tensor, self.out_proj(mixed.reshape(mixed.shape[0], mixed.shape[1], -1)))


class Mlp(nn.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.lin2(F.relu(self.lin1(x))))


class Head(nn.Module):
    """Linear layers with ReLU between, ``layers.0`` and on."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(F.relu(x) if number else x)
        return x


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, *, first: bool, shrink: int = 2) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, shrink)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, shrink)

    def forward(
        self, q: Tensor, k: Tensor, q_place: Tensor, k_place: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # The first block's tokens are their own positions: it neither adds them nor keeps a residual.
        q = self.self_attn(q, q, q, bias) if self.first else q + self.self_attn(q + q_place, q + q_place, q, bias)
        q = self.norm1(q)
        q = self.norm2(q + self.cross_attn_token_to_image(q + q_place, k + k_place, k))
        q = self.norm3(q + self.mlp(q))
        k = self.norm4(k + self.cross_attn_image_to_token(k + k_place, q + q_place, q, bias))
        return q, k


class TwoWayTransformer(nn.Module):
    """Tokens [batch, n, width] and image [batch, width, ...] to both, the image as [batch, pixels, width]."""

    def __init__(self, width: int, heads: int, hidden: int, depth: int = 2, shrink: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(width, heads, hidden, first=not number, shrink=shrink) for number in range(depth)
        )
        self.final_attn_token_to_image = Attention(width, heads, shrink)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, positions: Tensor, tokens: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        k, k_place = image.flatten(2).transpose(1, 2), positions.flatten(2).transpose(1, 2)
        q = tokens
        for layer in self.layers:
            q, k = layer(q, k, tokens, k_place, bias)
        q = self.norm_final_attn(q + self.final_attn_token_to_image(q + tokens, k + k_place, k))
        return q, k


class MaskDecoder(nn.Module):
    """Image embedding and encoded prompts to mask logits and predicted qualities.

    Mask 0 is the single answer; masks 1 to 3 are alternatives for a prompt that fits several things.

    Parameters
    ----------
    dimensions : 2 for pictures, 3 for volumes; every grid then has one more axis.
    """

    def __init__(
        self, width: int, *, heads: int = 8, hidden: int = 2048, depth: int = 2, shrink: int = 2,
        iou_hidden: int = 256, iou_depth: int = 3, alternatives: int = 3, dimensions: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.masks = alternatives + 1
        self.transformer = TwoWayTransformer(width, heads, hidden, depth, shrink)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(self.masks, width)
        convolution: Callable[..., nn.Module] = nn.ConvTranspose2d if dimensions == 2 else nn.ConvTranspose3d
        self.output_upscaling = nn.Sequential(
            convolution(width, width // 4, 2, 2), ChannelNorm(width // 4), nn.GELU(),
            convolution(width // 4, width // 8, 2, 2), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(Head(width, width, width // 8, 3) for _ in range(self.masks))
        self.iou_prediction_head = Head(width, iou_hidden, self.masks, iou_depth)

    def transform(
        self, image: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, absent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both outputs of the transformer."""
        batch = dense.shape[0]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])[None].expand(batch, -1, -1)
        tokens = torch.cat([own, sparse], dim=1)
        bias = None
        if absent is not None:
            takes_part = absent.new_zeros(batch, own.shape[1])
            bias = torch.cat([takes_part, absent], dim=1)[:, None, None, :] * EXCLUDED
        places = positions.expand(batch, *positions.shape[1:])
        return cast(tuple[Tensor, Tensor], self.transformer(image + dense, places, tokens, bias))

    def heads(self, q: Tensor, k: Tensor, *grid: int) -> tuple[Tensor, Tensor]:
        """Masks [batch, 4, 4 rows, 4 columns] and qualities [batch, 4] from the transformer's outputs of a ``grid`` of
        rows and columns."""
        pixels = k.transpose(1, 2).reshape(k.shape[0], k.shape[2], *grid)
        upscaled = self.output_upscaling(pixels)
        factors = torch.stack([head(q[:, 1 + i]) for i, head in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (factors @ upscaled.flatten(2)).reshape(k.shape[0], self.masks, *(4 * n for n in grid))
        return masks, self.iou_prediction_head(q[:, 0])

    def forward(
        self, image: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, absent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All masks and qualities.

        Parameters
        ----------
        image : [batch or 1, width, g, g]; one embedding serves all prompts of the batch.
        positions : [1, width, g, g].
        sparse : [batch, n, width].
        dense : [batch, width, g, g].
        absent : [batch, n] float, 1 for tokens that take no part.
        """
        q, k = self.transform(image, positions, sparse, dense, absent)
        return self.heads(q, k, *image.shape[2:])
