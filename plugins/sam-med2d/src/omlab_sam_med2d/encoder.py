"""The image encoder of SAM-Med2D: that of Segment Anything, with an adapter in every block."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from omlab_sdk.networks.sam.encoder import Block, ImageEncoder


class Adapter(nn.Module):
    """What fine-tuning added to each block: a gate a channel, then a convolution down and up again.

    [batch, row, column, width] to the same; the grid must be even along both sides. The LayerNorm keeps torch's
    epsilon of 1e-5, unlike those of the block.
    """

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False), nn.ReLU(),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        gated = x * self.channel(x.mean(dim=(1, 2)))[:, None, None]
        spread = self.spatial(gated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return cast(Tensor, self.norm(x + spread))


class AdaptedBlock(Block):
    """A block whose MLP has an adapter beside it."""

    def __init__(self, width: int, *arguments: Any, **more: Any) -> None:
        super().__init__(width, *arguments, **more)
        self.Adapter = Adapter(width)

    def widen(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().widen(x) + self.Adapter(x))


def image_encoder(*, adapter: bool = True, img_size: int = 256, patch_size: int = 16, **more: Any) -> ImageEncoder:
    """The encoder with or without adapters; further arguments as of
    :class:`omlab_sdk.networks.sam.encoder.ImageEncoder`."""
    if adapter and img_size // patch_size % 2:
        raise ValueError(
            f"adapters need an even grid of patches, {img_size} pixels make {img_size // patch_size} a side"
        )
    return ImageEncoder(img_size=img_size, patch_size=patch_size, block=AdaptedBlock if adapter else Block, **more)
