"""Places of a volume as SAM-Med3D encodes them."""

from __future__ import annotations

import torch
from torch import Tensor

from omlab_sdk.networks.sam.prompts import FourierPositions


class FourierPositions3d(FourierPositions):
    """Sine, cosine and once more the sine, each a third of the width.

    Points are encoded by their axes in order; the centres of the cells of a grid with the first two axes exchanged.
    Both are upstream's, and its weights were trained with them.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        if width % 3:
            raise ValueError(f"a width of {width} cannot be split into three parts")
        self.positional_encoding_gaussian_matrix = torch.randn(3, width // 3)

    def forward(self, places: Tensor) -> Tensor:
        """(x, y, z) in 0..1 [..., 3] to [..., width]."""
        turns = super().forward(places)
        return torch.cat([turns, turns[..., : turns.shape[-1] // 2]], dim=-1)

    def grid(self, *shape: int) -> Tensor:
        """Encoded centres of the cells of a grid, [width, *shape]."""
        like = self.positional_encoding_gaussian_matrix
        lines = [(torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n for n in shape]
        x, y, z = (
            line.reshape([-1 if a == axis else 1 for a in range(3)]).expand(*shape) for axis, line in enumerate(lines)
        )
        encoded: Tensor = self(torch.stack([y, x, z], dim=-1))
        return encoded.permute(3, 0, 1, 2)
