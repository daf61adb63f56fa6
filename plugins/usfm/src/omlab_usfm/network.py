"""USFM's vision transformer: BEiT's, with relative positions in every block or shared by all. State-dict names are
upstream's."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from omlab_sdk.networks.beit import RelativeAttention, RelativePositions, relative_index
from omlab_sdk.networks.vit import EPSILON, Block, PatchEmbed, drop_rates


class Trunk(nn.Module):
    """What classifier, segmentation backbone and pre-training network have in common: tokens and blocks.

    Parameters
    ----------
    init_values : initial value of layer scale; ``None`` leaves it out.
    use_abs_pos_emb : a learned position of each token is added (no published configuration).
    use_rel_pos_bias : every block has relative positions of its own (the published configurations).
    use_shared_rel_pos_bias : all blocks share one table (the published file); both may be on, they add.
    any_size : images of another size than ``img_size`` are cut too; relative positions still fix the grid.
    """

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, depth: int = 12,
        num_heads: int = 12, mlp_ratio: float = 4, qkv_bias: bool = False, init_values: float | None = None,
        drop_path_rate: float = 0.0, use_abs_pos_emb: bool = False, use_rel_pos_bias: bool = False,
        use_shared_rel_pos_bias: bool = False, any_size: bool = False, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"an image of {img_size} pixels cannot be cut into patches of {patch_size}")
        grid = self.grid = img_size // patch_size
        self.patch_embed = PatchEmbed(None if any_size else img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.placed = use_abs_pos_emb
        if use_abs_pos_emb:
            self.pos_embed = nn.Parameter(torch.zeros(1, grid**2 + 1, embed_dim))
        index = relative_index(grid) if use_rel_pos_bias or use_shared_rel_pos_bias else None
        self.shares = use_shared_rel_pos_bias
        if use_shared_rel_pos_bias:
            self.rel_pos_bias = RelativePositions(grid, num_heads, index=index)

        def attention() -> RelativeAttention:
            own = grid if use_rel_pos_bias else None
            return RelativeAttention(embed_dim, num_heads, grid=own, qkv_bias=qkv_bias, index=index)

        self.blocks = nn.ModuleList(
            Block(
                embed_dim, num_heads, mlp_ratio, drop_path=rate, attention=attention(), layer_scale=init_values, eps=eps
            )
            for rate in drop_rates(drop_path_rate, depth)
        )

    def initialise(self) -> None:
        """For training from scratch: truncated normal of 0.02, and branches weaker the deeper their block."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias_table"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            for number, block in enumerate(self.blocks, start=1):
                for layer in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                    layer.weight.div_(math.sqrt(2.0 * number))  # type: ignore[union-attr, operator]

    def tokens(self, patches: Tensor) -> Tensor:
        """[batch, 1 + patches, width]: the class token in front, with positions where they are learned."""
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return x + self.pos_embed if self.placed else x

    def trunk(self, x: Tensor) -> list[Tensor]:
        """Tokens after each block."""
        bias = self.rel_pos_bias() if self.shares else None
        after = []
        for block in self.blocks:
            x = block(x, bias)
            after.append(x)
        return after


class VisionTransformer(Trunk):
    """The classifier.

    ``use_mean_pooling`` averages the patch tokens and then normalises (``fc_norm``); without it all tokens go through
    ``norm`` and the class token is the feature. ``num_classes`` 0 leaves the head out.
    """

    def __init__(self, *, num_classes: int = 1000, use_mean_pooling: bool = True, **trunk: Any) -> None:
        super().__init__(**trunk)
        width, eps = self.cls_token.shape[2], trunk.get("eps", EPSILON)
        self.averages = use_mean_pooling
        if use_mean_pooling:
            self.fc_norm = nn.LayerNorm(width, eps=eps)
        else:
            self.norm = nn.LayerNorm(width, eps=eps)
        self.head: nn.Module = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.initialise()
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(0.001)

    def forward_features(self, image: Tensor) -> Tensor:
        """Feature [batch, width]."""
        x = self.trunk(self.tokens(self.patch_embed(image)))[-1]
        return cast(Tensor, self.fc_norm(x[:, 1:].mean(dim=1)) if self.averages else self.norm(x)[:, 0])

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        return cast(Tensor, self.head(self.forward_features(image)))


class Backbone(Trunk):
    """Features of several resolutions for segmentation: patch tokens after some blocks, made finer or coarser.

    Parameters
    ----------
    out_indices : blocks, from 0, whose tokens are taken; the k-th goes through the k-th change of resolution: with
        patches of 16 pixels to strides of 4, 8, 16 and 32.
    """

    def __init__(self, *, out_indices: tuple[int, ...] = (3, 5, 7, 11), **trunk: Any) -> None:
        super().__init__(**({"any_size": True} | trunk))
        self.out_indices = tuple(out_indices)
        depth, width, patch = len(self.blocks), self.cls_token.shape[2], self.patch_embed.patch
        if not self.out_indices or len(self.out_indices) > 4 or max(self.out_indices) >= depth:
            raise ValueError(f"out_indices {self.out_indices}: expected one to four of the blocks 0 to {depth - 1}")

        def finer() -> nn.Module:
            return nn.ConvTranspose2d(width, width, 2, stride=2)

        changes: tuple[nn.Module, ...]
        if patch == 16:
            four = nn.Sequential(finer(), nn.BatchNorm2d(width), nn.GELU(), finer())
            changes = (four, nn.Sequential(finer()), nn.Identity(), nn.MaxPool2d(2))
        elif patch == 8:
            changes = (nn.Sequential(finer()), nn.Identity(), nn.MaxPool2d(2), nn.MaxPool2d(4))
        else:
            raise ValueError(f"patches of {patch} pixels: the segmentation networks have patches of 16 or 8")
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = changes
        self.initialise()

    def forward(self, image: Tensor) -> list[Tensor]:
        """[batch, width, rows, columns] for each of ``out_indices``."""
        rows, columns = (side // self.patch_embed.patch for side in image.shape[2:])
        after = self.trunk(self.tokens(self.patch_embed(image)))
        maps = [after[i][:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for i in self.out_indices]
        return [change(x) for change, x in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=False)]


#: ViT-B, the only published size.
BASE: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12}
#: What the published file was trained with, besides its shared table.
TRAINED: dict[str, Any] = {"qkv_bias": True, "init_values": 0.1}
