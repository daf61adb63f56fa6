"""The network: patches, six blocks, the mean of the patch tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from omlab_sdk.networks.vit import EPSILON, Block, PatchEmbed, sincos

#: Of the random numbers that every user begins with.
SEED = 0
WIDTH, DEPTH, HEADS, PATCH = 128, 6, 4, 4


class SmallVisionTransformer(nn.Module):
    """Image [batch, channels, size, size] to feature [batch, 128].

    Positions begin as fixed sines and cosines and may be learnt. ``norm`` is that of a masked autoencoder's encoder, so
    that what pre-training learnt is all used.
    """

    def __init__(
        self, size: int = 28, channels: int = 1, *, width: int = WIDTH, depth: int = DEPTH, heads: int = HEADS
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(size, PATCH, channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos(width, size // PATCH, extra=1))[None])
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x)[:, 1:].mean(dim=1))


def network(size: int, channels: int, depth: int = DEPTH) -> SmallVisionTransformer:
    """The network with the random numbers that every user begins with; the caller's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = SmallVisionTransformer(size, channels, depth=depth)
        for module in made.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(made.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(made.cls_token, std=0.02)
    return made.eval()
