"""The prompt encoder: points, boxes and a mask to sparse tokens and a dense map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from omlab_sdk.networks.sam.encoder import CONVOLUTIONS, ChannelNorm

#: Labels of points. A box is two points; padding stands for "no box"; what is absent takes no part at all and lets
#: prompts of different lengths share a batch.
NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT, PADDING, ABSENT = 0, 1, 2, 3, -1, -2
CORNERS = 2


class FourierPositions(nn.Module):
    """Positions as sines and cosines of fixed random frequencies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, places: Tensor) -> Tensor:
        """(x, y) in 0..1 [..., 2] to [..., width]."""
        turns = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([turns.sin(), turns.cos()], dim=-1)

    def grid(self, rows: int, columns: int) -> Tensor:
        """Encoded centres of the cells of a grid, [width, rows, columns]."""
        like = self.positional_encoding_gaussian_matrix
        y = (torch.arange(rows, dtype=like.dtype, device=like.device) + 0.5) / rows
        x = (torch.arange(columns, dtype=like.dtype, device=like.device) + 0.5) / columns
        places = torch.stack([x[None, :].expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1)
        return cast(Tensor, self(places).permute(2, 0, 1))


class PromptEncoder(nn.Module):
    """Prompts in pixels of the model's frame, whose side is ``size``.

    Parameters
    ----------
    dimensions : 2 for pictures, 3 for volumes; every grid and place then has one more axis.
    kinds : kinds of points that there are: background, foreground, and the two corners of a box.
    positions : makes the encoding of places from the width.
    """

    def __init__(
        self, width: int, grid: int, size: int, mask_in_chans: int = 16, *, dimensions: int = 2, kinds: int = 4,
        positions: Callable[[int], nn.Module] = FourierPositions,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.size = width, size
        self.grid = (grid,) * dimensions
        self.pe_layer = positions(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(kinds))
        self.not_a_point_embed = nn.Embedding(1, width)
        convolution = CONVOLUTIONS[dimensions]
        self.mask_downscaling = nn.Sequential(
            convolution(1, mask_in_chans // 4, 2, 2), ChannelNorm(mask_in_chans // 4), nn.GELU(),
            convolution(mask_in_chans // 4, mask_in_chans, 2, 2), ChannelNorm(mask_in_chans), nn.GELU(),
            convolution(mask_in_chans, width, 1),
        )  # fmt: skip
        self.no_mask_embed = nn.Embedding(1, width)

    def dense_positions(self) -> Tensor:
        """Positions of the image tokens, [1, width, grid, grid]."""
        return cast(FourierPositions, self.pe_layer).grid(*self.grid)[None]

    def points(self, places: Tensor, labels: Tensor) -> Tensor:
        """Points [batch, n, 2] (x, y) with labels [batch, n] to tokens [batch, n, width].

        The four kinds of embedding are looked up by arithmetic and not by indexing, so that the exported graph takes
        any labels.
        """
        encoded = self.pe_layer((places + 0.5) / self.size)
        encoded = encoded * (labels != PADDING).to(encoded.dtype)[..., None]
        kinds = [(PADDING, self.not_a_point_embed), *enumerate(self.point_embeddings)]
        for label, embedding in kinds:
            chosen = (labels == label).to(encoded.dtype)[..., None]
            encoded = encoded + chosen * cast(nn.Embedding, embedding).weight
        return encoded

    def dense(self, mask: Tensor) -> Tensor:
        """Mask [batch, 1, 4 grid, 4 grid] to [batch, width, grid, grid]."""
        return cast(Tensor, self.mask_downscaling(mask))

    def no_mask(self, batch: int = 1) -> Tensor:
        """What stands for a mask that is not given, [batch, width, grid, grid]."""
        weight = self.no_mask_embed.weight
        return weight.reshape(1, -1, *(1 for _ in self.grid)).expand(batch, -1, *self.grid)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sparse tokens [batch, n, width] and dense map [batch, width, grid, grid], as upstream composes them.

        Parameters
        ----------
        points : places [batch, n, 2] and labels [batch, n]. Without boxes a padding point is appended.
        boxes : [batch, 4] or [batch, 1, 4] as (x0, y0, x1, y1).
        mask : [batch, 1, 4 grid, 4 grid], by convention probabilities.
        """
        given = next((t for t in (points and points[0], boxes, mask) if t is not None), None)
        batch = 1 if given is None else given.shape[0]
        tokens = []
        if points is not None:
            places, labels = points
            if boxes is None:
                places = torch.cat([places, places.new_zeros(batch, 1, len(self.grid))], dim=1)
                labels = torch.cat([labels, labels.new_full((batch, 1), PADDING)], dim=1)
            tokens.append(self.points(places, labels))
        if boxes is not None:
            corners = boxes.reshape(batch, CORNERS, 2)
            tokens.append(self.points(corners, corners.new_tensor([TOP_LEFT, BOTTOM_RIGHT]).expand(batch, CORNERS)))
        weight = self.no_mask_embed.weight
        sparse = torch.cat(tokens, dim=1) if tokens else weight.new_zeros(batch, 0, self.width)
        return sparse, self.dense(mask) if mask is not None else self.no_mask(batch)
