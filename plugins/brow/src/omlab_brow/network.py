"""The encoder: a plain vision transformer that takes images of any size (Wu et al. 2023, arXiv 2309.08259)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.vit import EPSILON, Block, PatchEmbed, drop_rates

#: Upstream's factories.
SIZES: dict[str, dict[str, Any]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}


class VisionTransformer(nn.Module):
    """Images [batch, channel, row, column] to the class token [batch, width]. Entries are named as upstream's.

    Parameters
    ----------
    img_size : side in pixels of the images that the position table is learned for.
    num_classes : a linear head of so many classes in the state dict, which :meth:`forward` does not use.
    """

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, num_classes: int = 0,
        embed_dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.0, qkv_bias: bool = True,
        drop_rate: float = 0.0, drop_path_rate: float = 0.0, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side = img_size
        # A remainder that holds no whole patch is dropped, as upstream does.
        self.patch_embed = PatchEmbed(None, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, eps=eps)
            for rate in drop_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position table [1, 1 + patches, width] for images of so many pixels.

        For another grid the learned one is interpolated. Its factor is that of the patches and a tenth, a guard against
        rounding which moves every sampling place a little and so is part of what the weights mean.
        """
        patch = self.patch_embed.patch
        down, across = rows // patch, columns // patch
        learned = self.pos_embed.shape[1] - 1
        if down * across == learned and rows == columns:
            return self.pos_embed
        side = math.isqrt(learned)
        square = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(
            square, scale_factor=((down + 0.1) / side, (across + 0.1) / side), mode="bicubic", align_corners=False,
            recompute_scale_factor=False,
        )  # fmt: skip
        if tuple(table.shape[2:]) != (down, across):
            raise ValueError(f"a table of {side} x {side} positions cannot be brought to {down} x {across}")
        return torch.cat([self.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    def tokens(self, image: Tensor) -> Tensor:
        """Class and patch tokens [batch, 1 + patches, width], with their positions."""
        patches = self.patch_embed(image)
        first = self.cls_token.expand(patches.shape[0], -1, -1)
        positions = self.positions(int(image.shape[2]), int(image.shape[3]))
        return cast(Tensor, self.pos_drop(torch.cat([first, patches], dim=1) + positions))

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x)[:, 0])

    def get_last_selfattention(self, image: Tensor) -> Tensor:
        """Attention of the last block [batch, head, 1 + patches, 1 + patches], rows sum to one."""
        x = self.tokens(image)
        *earlier, last = self.blocks
        for block in earlier:
            x = block(x)
        attention = last.attn
        batch, count, width = x.shape
        split = attention.project(last.norm1(x)).reshape(batch, count, 3, attention.heads, width // attention.heads)
        query, key, _ = split.permute(2, 0, 3, 1, 4).unbind(0)
        return ((query @ key.transpose(-2, -1)) * (width // attention.heads) ** -0.5).softmax(dim=-1)

    def get_intermediate_layers(self, image: Tensor, n: int = 1) -> list[Tensor]:
        """Outputs of the last ``n`` blocks through the final norm, in order, all tokens."""
        x = self.tokens(image)
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if len(self.blocks) - number <= n:
                found.append(self.norm(x))
        return found
