"""The vision transformers of RETFound.

Three published networks are one class here: the classifier with global pooling or CLS token (ViT-L/16), its variant
that normalises the pooled feature twice, and the DINOv2 encoder (ViT-L/14 with layer scale). State-dict names are
upstream's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of every LayerNorm of the published networks.
EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, [batch, tokens, width] to the same."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
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
    """Leaves a sample's branch out with probability ``rate`` while training, scaling the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block; ``scale`` adds layer scale with that initial value."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4, *, qkv_bias: bool = True, drop_path: float = 0.0,
        scale: float | None = None, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.scaled = scale is not None
        if scale is not None:
            self.ls1 = LayerScale(width, scale)
            self.ls2 = LayerScale(width, scale)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x))
        x = x + self.drop_path(self.ls1(attended) if self.scaled else attended)
        changed = self.mlp(self.norm2(x))
        return cast(Tensor, x + self.drop_path(self.ls2(changed) if self.scaled else changed))


class PatchEmbed(nn.Module):
    """[batch, channels, rows, columns] to [batch, patches, width], patches row by row."""

    def __init__(self, image: int, patch: int, channels: int, width: int) -> None:
        super().__init__()
        if image % patch:
            raise ValueError(f"an image of {image} pixels cannot be cut into patches of {patch}")
        self.image, self.patch = image, patch
        self.num_patches = (image // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2] != self.image or image.shape[3] != self.image:
            raise ValueError(
                f"the image has {image.shape[2]} x {image.shape[3]} pixels, "
                f"the network takes {self.image} x {self.image}"
            )
        return cast(Tensor, self.proj(image).flatten(2).transpose(1, 2))


class VisionTransformer(nn.Module):
    """Encoder with a linear head.

    Parameters
    ----------
    global_pool : mean of the patch tokens through ``fc_norm``; else the CLS token of the tokens through ``norm``.
    double_norm : apply ``fc_norm`` once more before the head, as upstream's code of February 2025 and later does.
        Files do not tell which rule they were trained with.
    init_values : initial value of layer scale; ``None`` leaves it out.
    all_tokens : ``forward_features`` gives all tokens through ``norm`` and the head takes the first, whatever
        ``global_pool`` says (the DINOv2 encoder); without it, networks with layer scale do so.
    num_classes : 0 leaves the head out.
    """

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, num_classes: int = 1000,
        embed_dim: int = 1024, depth: int = 24, num_heads: int = 16, mlp_ratio: float = 4, qkv_bias: bool = True,
        drop_path_rate: float = 0.0, global_pool: bool = False, double_norm: bool = False,
        init_values: float | None = None, all_tokens: bool | None = None, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.all_tokens = init_values is not None if all_tokens is None else all_tokens
        self.global_pool = global_pool and not self.all_tokens
        self.double_norm = double_norm and self.global_pool
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, scale=init_values, eps=eps)
            for rate in rates
        )
        if self.global_pool:
            self.fc_norm = nn.LayerNorm(embed_dim, eps=eps)
        else:
            self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.apply(_initialise)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def tokens(self, image: Tensor) -> Tensor:
        """Input of the first block: CLS and patch tokens with their positions."""
        patches = self.patch_embed(image)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embed

    def forward_features(self, image: Tensor) -> Tensor:
        """Pooled, normalised feature [batch, width]; all normalised tokens for the DINOv2 encoder."""
        x = self.tokens(image)
        for block in self.blocks:
            x = block(x)
        return self.pool(x)

    def pool(self, x: Tensor) -> Tensor:
        """Last tokens to feature."""
        if self.all_tokens:
            return cast(Tensor, self.norm(x))
        if self.global_pool:
            return cast(Tensor, self.fc_norm(x[:, 1:].mean(dim=1)))
        return cast(Tensor, self.norm(x)[:, 0])

    def classify(self, feature: Tensor) -> Tensor:
        """Feature to logits."""
        if self.all_tokens:
            feature = feature[:, 0]
        elif self.double_norm:
            feature = self.fc_norm(feature)
        return cast(Tensor, self.head(feature))

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        return self.classify(self.forward_features(image))


def _initialise(module: nn.Module) -> None:
    """For training from scratch: linear weights truncated normal of std 0.02, biases 0, norms 1 and 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class Embedder(nn.Module):
    """What is exported for embeddings: image [batch, 3, n, n] to feature [batch, width].

    For the DINOv2 encoder: the mean of the patch tokens through a LayerNorm without weights, as in upstream's notebook.
    """

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        feature = self.network.forward_features(image)
        if self.network.all_tokens:
            feature = F.layer_norm(feature[:, 1:].mean(dim=1), feature.shape[-1:], eps=EPSILON)
        return feature


#: ViT-L, the only published size.
LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
