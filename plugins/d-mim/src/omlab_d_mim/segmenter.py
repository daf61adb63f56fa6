"""D-MIM's segmentation networks: U-Net, U-Net++ and UPerNet on the encoders of ConvMAE and MAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_d_mim.network import CONV_EPSILON, CONV_SIZES, VIT_SIZES, ConvTrunk
from omlab_sdk.networks.beit import position_bias, relative_index
from omlab_sdk.networks.upernet import FCNHead, UPerHead, resize
from omlab_sdk.networks.vit import EPSILON, Attention, Block, PatchEmbed, drop_rates


class RelativeAttention(Attention):
    """With relative positions of its own and a bias of queries, keys and values alike, unlike BEiT's."""

    def __init__(
        self, width: int, heads: int, grid: int, *, class_token: bool, index: Tensor, qkv_bias: bool = True
    ) -> None:
        super().__init__(width, heads, qkv_bias=qkv_bias)
        rows = (2 * grid - 1) ** 2 + 3 * class_token
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("relative_position_index", index)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        own = position_bias(self.relative_position_bias_table, cast(Tensor, self.relative_position_index))
        return super().forward(x, own if bias is None else own + bias)


class ConvEncoder(ConvTrunk):
    """ConvMAE's encoder: features at 1/4, 1/8, 1/16 and 1/32 of the image, finest first. All norms have one epsilon.

    Parameters
    ----------
    padded : the last convolution pads (U-Net, U-Net++) or not (UPerNet).
    """

    def __init__(
        self, *, img_size: Sequence[int] = (512, 128, 64), init_values: float | None = 1.0, padded: bool = True,
        use_rel_pos_bias: bool = True, **trunk: Any,
    ) -> None:  # fmt: skip
        shape = CONV_SIZES["base"] | {"patch_size": (4, 2, 2), "eps": CONV_EPSILON} | trunk
        grid, width, heads = img_size[2] // shape["patch_size"][2], shape["embed_dim"][2], shape["num_heads"]
        index = relative_index(grid, class_token=False)

        def attention() -> Attention:
            bias = shape.get("qkv_bias", True)
            return RelativeAttention(width, heads, grid, class_token=False, index=index, qkv_bias=bias)

        super().__init__(
            img_size=img_size, layer_scale=init_values, attention=attention if use_rel_pos_bias else None, **shape
        )
        self.channels: tuple[int, ...] = (*shape["embed_dim"], width)
        self.fpn = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=int(padded)), nn.BatchNorm2d(width), nn.GELU()
        )
        self.initialise()

    def forward(self, image: Tensor) -> list[Tensor]:
        """[batch, channels, rows, columns] for each of the four resolutions."""
        first, second, tokens = self.stages(image)
        third = self.transform(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return [first, second, third, self.fpn(third)]


class VisionEncoder(nn.Module):
    """MAE's encoder: patch tokens after four of its blocks, at 1/4, 1/8, 1/16 and 1/32 of the image, finest first."""

    def __init__(
        self, *, img_size: int = 512, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, depth: int = 12,
        num_heads: int = 12, mlp_ratio: float = 4, qkv_bias: bool = True, drop_path_rate: float = 0.2,
        init_values: float | None = 1.0, out_indices: Sequence[int] = (3, 5, 7, 11), eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(out_indices) != 4 or max(out_indices) >= depth:
            raise ValueError(f"out_indices {tuple(out_indices)}: expected four of the blocks 0 to {depth - 1}")
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.side, self.grid, self.out_indices = img_size, self.patch_embed.grid, tuple(out_indices)
        self.channels = (embed_dim,) * 4
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, embed_dim))
        index = relative_index(self.grid)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim, num_heads, mlp_ratio, drop_path=rate, layer_scale=init_values, eps=eps,
                attention=RelativeAttention(
                    embed_dim, num_heads, self.grid, class_token=True, index=index, qkv_bias=qkv_bias
                ),
            )
            for rate in drop_rates(drop_path_rate, depth)
        )  # fmt: skip

        def finer() -> nn.Module:
            return nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)

        self.fpn1 = nn.Sequential(finer(), nn.BatchNorm2d(embed_dim), nn.GELU(), finer())
        self.fpn2 = nn.Sequential(finer())
        self.fpn3, self.fpn4 = nn.Identity(), nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[batch, width, rows, columns] for each of the four resolutions."""
        x = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.out_indices:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return [change(x) for change, x in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=True)]


class DecoderBlock(nn.Module):
    """Twice as fine, beside what is skipped to it, through two convolutions."""

    def __init__(self, before: int, skip: int, after: int) -> None:
        super().__init__()
        self.conv1 = _conv(before + skip, after)
        self.conv2 = _conv(after, after)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return cast(Tensor, self.conv2(self.conv1(torch.cat([x, *skips], dim=1) if skips else x)))


def _conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class UNetDecoder(nn.Module):
    """Features, finest first, to a map of half the image's side.

    Parameters
    ----------
    encoder : channels of the features.
    widths : channels after each step.
    """

    def __init__(self, encoder: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        coarse = [*encoder[::-1]]
        before = [coarse[0], *widths[:-1]]
        skips = [*coarse[1:], 0]
        self.blocks = nn.ModuleList(DecoderBlock(*three) for three in zip(before, skips, widths, strict=True))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x, *skips = features[::-1]
        for number, block in enumerate(self.blocks):
            x = block(x, *skips[number : number + 1])
        return x


class UNetPlusPlusDecoder(nn.Module):
    """Like :class:`UNetDecoder`, with a map at every crossing of depth and step. ``x_d_l`` starts from depth ``d`` and
    lies at step ``l``; it sees all that lies at its step from deeper starts."""

    def __init__(self, encoder: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        coarse = [*encoder[::-1]]
        before, skips = [coarse[0], *widths[:-1]], [*coarse[1:], 0]
        self.steps = len(widths) - 1
        self.blocks = nn.ModuleDict()
        for step in range(self.steps):
            for start in range(step + 1):
                if start == 0:
                    block = DecoderBlock(before[step], skips[step] * (step + 1), widths[step])
                else:
                    block = DecoderBlock(skips[step - 1], skips[step] * (step + 1 - start), skips[step])
                self.blocks[f"x_{start}_{step}"] = block
        self.blocks[f"x_0_{self.steps}"] = DecoderBlock(before[-1], 0, widths[-1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        coarse = features[::-1]
        maps: dict[tuple[int, int], Tensor] = {}
        for step in range(self.steps):
            # Deeper starts first: the others see them.
            for start in range(step, -1, -1):
                x = coarse[start] if start == step else maps[start, step - 1]
                beside = [maps[deeper, step] for deeper in range(start + 1, step + 1)]
                maps[start, step] = self.blocks[f"x_{start}_{step}"](x, *beside, coarse[step + 1])
        return cast(Tensor, self.blocks[f"x_0_{self.steps}"](maps[0, self.steps - 1]))


class UNet(nn.Module):
    """Encoder, decoder and head; ``forward`` gives the probability [batch, classes, rows / 2, columns / 2] of each
    pixel: classes may overlap.

    Parameters
    ----------
    nested : U-Net++ instead of U-Net.
    """

    def __init__(
        self, encoder: ConvEncoder | VisionEncoder, *, nested: bool, classes: int = 1,
        widths: Sequence[int] = (256, 128, 64, 32),
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.nested = encoder, nested
        self.decoder = (UNetPlusPlusDecoder if nested else UNetDecoder)(encoder.channels, widths)
        self.segmentation_head = nn.Sequential(nn.Conv2d(widths[-1], classes, 3, padding=1))

    def logits(self, image: Tensor) -> Tensor:
        """Before the sigmoid."""
        return cast(Tensor, self.segmentation_head(self.decoder(self.encoder(image))))

    def forward(self, image: Tensor) -> Tensor:
        return self.logits(image).sigmoid()


class UPerNet(nn.Module):
    """ConvMAE's encoder with UPerNet's head, and an auxiliary one for training; ``forward`` gives logits
    [batch, classes, rows, columns] at the image's size."""

    def __init__(
        self, *, classes: int = 2, channels: int = 768, auxiliary_channels: int | None = 256, **backbone: Any
    ) -> None:
        super().__init__()
        self.backbone = ConvEncoder(**({"padded": False} | backbone))
        widths = self.backbone.channels
        self.decode_head = UPerHead(widths, channels, classes)
        self.auxiliary_head = FCNHead(widths[2], auxiliary_channels, classes) if auxiliary_channels else None

    def forward(self, image: Tensor) -> Tensor:
        return resize(self.decode_head(self.backbone(image)), image.shape[2:])

    def heads(self, image: Tensor) -> list[Tensor]:
        """Logits as both heads give them, at 1/4 and 1/16 of the image; without the auxiliary one, of the other."""
        features = self.backbone(image)
        auxiliary = [] if self.auxiliary_head is None else [self.auxiliary_head(features[2])]
        return [self.decode_head(features), *auxiliary]


def unet(encoder: str, *, nested: bool, classes: int = 1, img_size: int = 512, **shape: Any) -> UNet:
    """Upstream's configuration, on the encoder ``convmae`` or ``mae``; ``shape`` has arguments of the encoder in place
    of those of the base size."""
    if encoder == "convmae":
        sides = (img_size, img_size // 4, img_size // 8)
        return UNet(
            ConvEncoder(img_size=sides, drop_path_rate=0.2, **CONV_SIZES["base"] | shape), nested=nested,
            classes=classes,
        )  # fmt: skip
    return UNet(VisionEncoder(img_size=img_size, **VIT_SIZES["base"] | shape), nested=nested, classes=classes)


def upernet(classes: int = 2, *, img_size: int = 512, **shape: Any) -> UPerNet:
    """Upstream's configuration; ``shape`` has arguments in place of those of the base size."""
    sides = (img_size, img_size // 4, img_size // 8)
    return UPerNet(classes=classes, img_size=sides, drop_path_rate=0.2, **CONV_SIZES["base"] | shape)
