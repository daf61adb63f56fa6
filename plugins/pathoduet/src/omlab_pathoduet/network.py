"""PathoDuet's vision transformer: the ViT of MoCo v3 with one more token in front, the pretext token.

The pretext token is learned, or the mean patch token of a small reference image; two pre-training tasks read it
(:mod:`omlab_pathoduet.pretraining`). State-dict names are upstream's.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from omlab_sdk.networks.vit import EPSILON, Block, PatchEmbed, sincos

#: Tokens in front of the patches: pretext, then class.
PREFIX = 2


class VisionTransformer(nn.Module):
    """Encoder with a head; ``forward`` gives (tokens of the last block, logits).

    Parameters
    ----------
    global_pool : ``"avg"`` (the published models) pools the mean patch token through ``fc_norm`` and leaves the tokens
        as the last block gives them; ``"token"`` sends all tokens through ``norm`` and pools the class token.
    num_classes : 0 makes the head an identity, so that the second output is the pooled feature.
    stem : ``"patch"`` is one convolution; ``"conv"`` four of 3 x 3 that halve the image, and one of 1 x 1.
    frozen_stem : the patch projection is not trained (upstream's ``stop_grad_conv1``); only for ``"patch"``.
    """

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, num_classes: int = 1000,
        global_pool: Literal["avg", "token"] = "token", embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
        mlp_ratio: float = 4, qkv_bias: bool = True, stem: Literal["patch", "conv"] = "patch",
        frozen_stem: bool = False, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        if global_pool not in ("avg", "token"):
            raise ValueError(f"tokens are pooled by 'avg' or 'token', not by '{global_pool}'")
        if stem == "conv" and patch_size != 16:
            raise ValueError(f"the stem of convolutions makes patches of 16 pixels, not of {patch_size}")
        self.global_pool = global_pool
        proj = conv_stem(in_chans, embed_dim) if stem == "conv" else None
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, proj=proj)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pretext_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = torch.from_numpy(sincos(embed_dim, self.patch_embed.grid, extra=PREFIX, first="row"))
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, eps=eps) for _ in range(depth)
        )
        averages = global_pool == "avg"
        self.norm = nn.Identity() if averages else nn.LayerNorm(embed_dim, eps=eps)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=eps) if averages else nn.Identity()
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self._initialise()
        if frozen_stem and stem == "patch":
            self.patch_embed.proj.requires_grad_(False)

    def _initialise(self) -> None:
        """For training from scratch, by MoCo v3's rules."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith("qkv"):  # as three square matrices, each by Xavier's rule
                    bound = math.sqrt(6 / (module.weight.shape[0] // 3 + module.weight.shape[1]))
                    nn.init.uniform_(module.weight, -bound, bound)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.normal_(self.pretext_token, std=1e-6)
        proj = self.patch_embed.proj
        if isinstance(proj, nn.Conv2d):
            bound = math.sqrt(6 / (proj.weight[0].numel() + proj.weight.shape[0]))
            nn.init.uniform_(proj.weight, -bound, bound)
            nn.init.zeros_(cast(Tensor, proj.bias))

    def reference_token(self, ref: Tensor) -> Tensor:
        """[batch, 1, width]: mean patch token of reference images, whose sides are multiples of 16 of any size."""
        return self.patch_embed.tokens(ref).mean(dim=1, keepdim=True)

    def tokens(self, image: Tensor, ref: Tensor | None = None) -> Tensor:
        """[batch, 2 + patches, width], the input of the first block: pretext, class, patches, with positions."""
        patches = self.patch_embed(image)
        pretext = self.pretext_token
        if ref is not None:
            # Times zero and not left out: the learned token gets a gradient, so an optimiser still decays it.
            pretext = pretext * 0 + self.reference_token(ref)
        front = [token.expand(patches.shape[0], -1, -1) for token in (pretext, self.cls_token)]
        return torch.cat([*front, patches], dim=1) + self.pos_embed

    def forward_features(self, image: Tensor, ref: Tensor | None = None) -> Tensor:
        """Tokens [batch, 2 + patches, width] after the last block; through ``norm`` where the class token is pooled."""
        x = self.tokens(image, ref)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.norm(x))

    def pool(self, x: Tensor) -> Tensor:
        """Tokens to feature [batch, width]."""
        pooled = x[:, PREFIX:].mean(dim=1) if self.global_pool == "avg" else x[:, 1]
        return cast(Tensor, self.fc_norm(pooled))

    def forward_head(self, x: Tensor) -> Tensor:
        """Tokens to what the head gives."""
        return cast(Tensor, self.head(self.pool(x)))

    def forward(self, image: Tensor, ref: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(tokens, logits) of images and, for a pretext task, their reference images."""
        x = self.forward_features(image, ref)
        return x, self.forward_head(x)


def conv_stem(channels: int, width: int) -> nn.Sequential:
    """Four convolutions of stride 2 with batch norm and ReLU, then one of 1 x 1: a sixteenth of the image's side."""
    layers: list[nn.Module] = []
    before = channels
    for after in (width // 8, width // 4, width // 2, width):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))


#: Upstream's factories. Only ``vit_base`` was published with weights.
SIZES: dict[str, dict[str, Any]] = {
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 12},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_conv_small": {"embed_dim": 384, "depth": 11, "num_heads": 12, "stem": "conv"},
    "vit_conv_base": {"embed_dim": 768, "depth": 11, "num_heads": 12, "stem": "conv"},
}


class Answer(nn.Module):
    """What is exported: image [batch, 3, n, n] to the feature or the logits alone."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.network(image)[1])
