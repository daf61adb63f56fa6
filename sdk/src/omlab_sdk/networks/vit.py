"""Parts of plain vision transformers (Dosovitskiy et al. 2021), with the state-dict names that most upstreams use.

A model's own network class says which tokens it puts in front, which position table it adds and how it pools; what
lies between is here. Tokens are [batch, tokens, width]; images are [batch, channels, rows, columns].
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

#: Of the norms of nearly all published vision transformers.
EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """Image to patch tokens, row by row.

    Parameters
    ----------
    image : side in pixels of the images that are taken; ``None`` takes any.
    patch : side of a patch in pixels.
    proj : replaces the one convolution, say by a stem of several; it must shrink the image by ``patch``.
    """

    def __init__(
        self, image: int | None, patch: int, channels: int, width: int, *, proj: nn.Module | None = None
    ) -> None:
        super().__init__()
        if image is not None and image % patch:
            raise ValueError(f"an image of {image} pixels cannot be cut into patches of {patch}")
        self.image, self.patch = image, patch
        self.proj = nn.Conv2d(channels, width, patch, patch) if proj is None else proj

    @property
    def grid(self) -> int:
        """Patches along a side; only where the size of images is fixed."""
        if self.image is None:
            raise ValueError("images of any size are taken, so there is no fixed grid of patches")
        return self.image // self.patch

    @property
    def num_patches(self) -> int:
        """Patches of an image; only where the size of images is fixed."""
        return self.grid**2

    def forward(self, image: Tensor) -> Tensor:
        """Tokens of a whole image; ``ValueError`` for another size than the network's."""
        if self.image is not None and (image.shape[2] != self.image or image.shape[3] != self.image):
            raise ValueError(
                f"the image has {image.shape[2]} x {image.shape[3]} pixels, "
                f"the network takes {self.image} x {self.image}"
            )
        return self.tokens(image)

    def tokens(self, image: Tensor) -> Tensor:
        """Like :meth:`forward`, of any size."""
        return cast(Tensor, self.proj(image).flatten(2).transpose(1, 2))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values, in this order.

    Subclasses change :meth:`project`. ``bias`` of :meth:`forward` ([heads, tokens, tokens], say of relative positions)
    is added to the scaled scores.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Tensor:
        """[batch, tokens, 3 * width]: queries, keys and values of all heads."""
        return cast(Tensor, self.qkv(x))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        split = self.project(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class DropPath(nn.Module):
    """Leaves a sample's branch out with probability ``rate`` while training, and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep) / keep)


class Block(nn.Module):
    """Pre-norm transformer block.

    Parameters
    ----------
    attention : instead of the plain one.
    layer_scale : initial value of a factor for each channel of both branches, ``gamma_1`` and ``gamma_2`` as in BEiT;
        ``None`` has none.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4, *, qkv_bias: bool = True, drop_path: float = 0.0,
        attention: Attention | None = None, layer_scale: float | None = None, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias) if attention is None else attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.scaled = layer_scale is not None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((width,), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((width,), float(layer_scale)))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        attended = self.attn(self.norm1(x), bias)
        x = x + self.drop_path(self.gamma_1 * attended if self.scaled else attended)
        changed = self.mlp(self.norm2(x))
        return cast(Tensor, x + self.drop_path(self.gamma_2 * changed if self.scaled else changed))


def drop_rates(greatest: float, depth: int) -> list[float]:
    """Drop-path rate of each block: from 0 to ``greatest``, evenly."""
    return [greatest * i / max(1, depth - 1) for i in range(depth)]


def sincos(width: int, grid: int, *, extra: int = 0, first: Literal["row", "column"] = "column") -> NDArray[np.float32]:
    """[extra + grid^2, width] float32 fixed positions of a square grid, row by row; the ``extra`` rows are zero.

    One half of the channels encodes the row and the other the column, each as sines and then cosines of
    ``position / 10000^(k / (width / 4))``. Which comes ``first`` differs: the column in masked autoencoders, the row in
    MoCo v3.
    """
    if width % 4:
        raise ValueError(f"a width of {width} cannot hold sines and cosines of two axes, it must be a multiple of 4")
    quarter = width // 4
    frequencies = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float64) / quarter)
    positions = np.mgrid[:grid, :grid] if first == "row" else np.mgrid[:grid, :grid][::-1]
    angles = positions.reshape(2, -1, 1) * frequencies
    halves = np.concatenate([np.sin(angles), np.cos(angles)], axis=2)
    table = np.concatenate([halves[0], halves[1]], axis=1)
    return np.concatenate([np.zeros((extra, width)), table]).astype(np.float32)


def interpolate(table: Tensor, grid: int, *, extra: int = 1) -> Tensor:
    """Position table [1, extra + old^2, width] for another square grid: bicubic, corners not aligned, no antialiasing;
    the first ``extra`` rows stay."""
    old = int((table.shape[1] - extra) ** 0.5)
    if old == grid:
        return table
    square = table[:, extra:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :extra], square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
