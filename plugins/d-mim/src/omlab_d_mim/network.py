"""D-MIM's encoders and classifiers: ConvMAE (convolutions in two stages, then a transformer) and the plain vision
transformer. State-dict names are upstream's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.vit import EPSILON, Attention, Block, DropPath, PatchEmbed, drop_rates, sincos

#: Of the norms inside the convolutional stages, whatever the transformer's is.
CONV_EPSILON = 1e-5


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [batch, channels, rows, columns], at each place alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=CONV_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvEmbed(nn.Module):
    """A map made smaller by ``patch``: convolution, norm, GELU, in this order."""

    def __init__(self, before: int, after: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, after, patch, patch)
        self.norm = ChannelNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.proj(x)))


class ConvMlp(nn.Module):
    """An MLP at each place of a map."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class ConvBlock(nn.Module):
    """Pre-norm block whose "attention" is a depth-wise convolution of 5 x 5.

    ``visible`` of :meth:`forward`, [batch, 1, rows, columns] with 0 for hidden places, keeps these out of the
    convolution; they stay in the map itself.
    """

    def __init__(self, channels: int, mlp_ratio: float, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.attn = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.norm2 = ChannelNorm(channels)
        self.mlp = ConvMlp(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        y = self.conv1(self.norm1(x))
        if visible is not None:
            y = visible * y
        x = x + self.drop_path(self.conv2(self.attn(y)))
        return cast(Tensor, x + self.drop_path(self.mlp(self.norm2(x))))


class ConvTrunk(nn.Module):
    """The three stages of ConvMAE: maps at 1/4 and 1/8 of the image, tokens at 1/16. There is no class token.

    Parameters
    ----------
    img_size, patch_size : side of what each stage takes in pixels, and by how much it makes it smaller.
    embed_dim, depth, mlp_ratio : of each stage.
    num_heads, qkv_bias : of the third stage.
    eps : of the third stage's norms.
    layer_scale : see :class:`omlab_sdk.networks.vit.Block`.
    attention : makes the third stage's attention, of another kind than the plain one.
    """

    def __init__(
        self, *, img_size: Sequence[int] = (224, 56, 28), patch_size: Sequence[int] = (4, 2, 2), in_chans: int = 3,
        embed_dim: Sequence[int] = (256, 384, 768), depth: Sequence[int] = (2, 2, 11), num_heads: int = 12,
        mlp_ratio: Sequence[float] = (4, 4, 4), qkv_bias: bool = True, drop_path_rate: float = 0.0,
        eps: float = EPSILON, layer_scale: float | None = None, attention: Callable[[], Attention] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if any(one // by != other for one, by, other in zip(img_size, patch_size, img_size[1:], strict=False)):
            raise ValueError(f"img_size {tuple(img_size)} does not go with patch_size {tuple(patch_size)}")
        one, two, three = embed_dim
        self.side, self.grid, self.factors = img_size[0], img_size[2] // patch_size[2], tuple(patch_size)
        self.patch_embed1 = ConvEmbed(in_chans, one, patch_size[0])
        self.patch_embed2 = ConvEmbed(one, two, patch_size[1])
        self.patch_embed3 = ConvEmbed(two, three, patch_size[2])
        self.patch_embed4 = nn.Linear(three, three)
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos(three, self.grid))[None])
        rates = drop_rates(drop_path_rate, sum(depth))
        first, second = depth[0], depth[0] + depth[1]
        self.blocks1 = nn.ModuleList(ConvBlock(one, mlp_ratio[0], drop_path=rate) for rate in rates[:first])
        self.blocks2 = nn.ModuleList(ConvBlock(two, mlp_ratio[1], drop_path=rate) for rate in rates[first:second])
        self.blocks3 = nn.ModuleList(
            Block(
                three, num_heads, mlp_ratio[2], qkv_bias=qkv_bias, drop_path=rate, eps=eps, layer_scale=layer_scale,
                attention=attention() if attention else None,
            )
            for rate in rates[second:]
        )  # fmt: skip

    def initialise(self) -> None:
        """For training from scratch, as masked autoencoders begin."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embed in (self.patch_embed1, self.patch_embed2, self.patch_embed3):
            nn.init.xavier_uniform_(embed.proj.weight.data.flatten(1))

    def stages(
        self, image: Tensor, visible: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(first map, second map, third stage's tokens [batch, tokens, width] with their positions).

        Parameters
        ----------
        visible : masks of the first and the second map, see :class:`ConvBlock`.

        Raises
        ------
        ValueError
            The image has another size than the network's.
        """
        if tuple(image.shape[2:]) != (self.side, self.side):
            raise ValueError(
                f"the image has {image.shape[2]} x {image.shape[3]} pixels, the network takes {self.side} x {self.side}"
            )
        first = self.patch_embed1(image)
        for block in self.blocks1:
            first = block(first, visible[0])
        second = self.patch_embed2(first)
        for block in self.blocks2:
            second = block(second, visible[1])
        tokens = self.patch_embed4(self.patch_embed3(second).flatten(2).transpose(1, 2))
        return first, second, tokens + self.pos_embed

    def transform(self, tokens: Tensor) -> Tensor:
        """Tokens through the third stage's blocks."""
        for block in self.blocks3:
            tokens = block(tokens)
        return tokens


class ConvViT(ConvTrunk):
    """The classifier on ConvMAE's encoder; the stages' maps are not added to the tokens, unlike in pre-training.

    ``global_pool`` averages all tokens and then normalises (``fc_norm``); without it all go through ``norm`` and the
    feature is the first token, which is the patch in the upper left corner. ``num_classes`` 0 leaves the head out.
    """

    def __init__(self, *, num_classes: int = 2, global_pool: bool = True, **trunk: Any) -> None:
        super().__init__(**trunk)
        _add_head(self, self.pos_embed.shape[2], num_classes, global_pool, trunk.get("eps", EPSILON))
        self.initialise()
        _initialise_head(self)

    def forward_features(self, image: Tensor) -> Tensor:
        """Feature [batch, width]."""
        x = self.transform(self.stages(image)[2])
        return cast(Tensor, self.fc_norm(x.mean(dim=1)) if self.averages else self.norm(x)[:, 0])

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        return cast(Tensor, self.head(self.forward_features(image)))


class VisionTransformer(nn.Module):
    """The classifier on MAE's encoder.

    ``global_pool`` averages the patch tokens, without the class token, and then normalises (``fc_norm``); without it
    all tokens go through ``norm`` and the class token is the feature. ``num_classes`` 0 leaves the head out.
    """

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, depth: int = 12,
        num_heads: int = 12, mlp_ratio: float = 4, qkv_bias: bool = True, drop_path_rate: float = 0.0,
        num_classes: int = 2, global_pool: bool = True, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side = img_size
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos(embed_dim, self.patch_embed.grid, extra=1))[None])
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, eps=eps)
            for rate in drop_rates(drop_path_rate, depth)
        )
        _add_head(self, embed_dim, num_classes, global_pool, eps)
        _initialise_head(self)

    def forward_features(self, image: Tensor) -> Tensor:
        """Feature [batch, width]."""
        x = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.fc_norm(x[:, 1:].mean(dim=1)) if self.averages else self.norm(x)[:, 0])

    def forward(self, image: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        return cast(Tensor, self.head(self.forward_features(image)))


def _add_head(network: Any, width: int, classes: int, global_pool: bool, eps: float) -> None:
    network.averages = global_pool
    setattr(network, "fc_norm" if global_pool else "norm", nn.LayerNorm(width, eps=eps))
    network.head = nn.Linear(width, classes) if classes else nn.Identity()


def _initialise_head(network: Any) -> None:
    if isinstance(network.head, nn.Linear):
        nn.init.trunc_normal_(network.head.weight, std=2e-5)
        nn.init.zeros_(network.head.bias)


#: ConvMAE's sizes; the weights of ``base`` are published.
CONV_SIZES: Mapping[str, dict[str, Any]] = {
    "base": {"embed_dim": (256, 384, 768), "depth": (2, 2, 11), "num_heads": 12, "mlp_ratio": (4, 4, 4)},
    "large": {"embed_dim": (384, 768, 1024), "depth": (2, 2, 23), "num_heads": 16, "mlp_ratio": (8, 8, 4)},
    "huge": {"embed_dim": (768, 1024, 1280), "depth": (2, 2, 31), "num_heads": 16, "mlp_ratio": (8, 8, 4)},
}
#: MAE's sizes; the weights of ``base`` are published, with patches of 16 pixels.
VIT_SIZES: Mapping[str, dict[str, Any]] = {
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}
