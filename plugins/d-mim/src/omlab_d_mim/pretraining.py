"""What D-MIM is pre-trained with: an image is blurred, three quarters of it are hidden, and a network restores the
original. State-dict names are upstream's; the vanilla networks that it is compared with have the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from omlab_d_mim.network import ConvTrunk
from omlab_sdk.networks import masking
from omlab_sdk.networks.vit import EPSILON, Block, PatchEmbed, sincos


class Autoencoder(nn.Module, ABC):
    """What both autoencoders share: the decoder and the two objectives.

    Attributes
    ----------
    patch : side of a patch in pixels.
    norm_pix_loss : targets are standardised patch by patch (off in all published runs).
    """

    patch: int
    norm_pix_loss: bool
    mask_token: nn.Parameter
    decoder_pos_embed: nn.Parameter

    def add_decoder(
        self, width: int, grid: int, *, extra: int, channels: int, embed_dim: int, depth: int, num_heads: int,
        mlp_ratio: float, eps: float,
    ) -> None:  # fmt: skip
        """The decoder's modules; ``extra`` tokens lie before those of the patches."""
        self.extra = extra
        self.decoder_embed = nn.Linear(width, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = torch.from_numpy(sincos(embed_dim, grid, extra=extra))[None]
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, eps=eps) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=eps)
        self.decoder_pred = nn.Linear(embed_dim, self.patch**2 * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    @abstractmethod
    def encode(self, image: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(latent of the visible tokens in shuffled order, mask [batch, patches] with 1 for hidden, order that
        restores).

        Parameters
        ----------
        noise : [batch, patches], the smallest are kept; uniform random numbers without it.
        """

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Prediction of every patch, [batch, patches, row * column * channel], channel fastest."""
        x = self.decoder_embed(latent)
        patches = masking.reveal(x[:, self.extra :], self.mask_token, restore)
        x = torch.cat([x[:, : self.extra], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(x))[:, self.extra :])

    def loss(self, target: Tensor, prediction: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean squared error against the image ``target``: of every patch (deblurring), or with a mask of the hidden
        ones only (vanilla)."""
        patches = masking.patchify(target, self.patch)
        counted = torch.ones_like(prediction[..., 0]) if mask is None else mask
        return masking.error(patches, prediction, counted, norm_pix=self.norm_pix_loss)

    def forward(
        self, image: Tensor, original: Tensor | None = None, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, prediction, mask).

        Parameters
        ----------
        image : [batch, channels, rows, columns]; blurred, if there is an original.
        original : the image as it was: visible patches count too, as they have to be deblurred. Without it the
            objective is the vanilla one, hidden patches of ``image`` itself.
        """
        latent, mask, restore = self.encode(image, mask_ratio, noise)
        prediction = self.decode(latent, restore)
        loss = self.loss(image, prediction, mask) if original is None else self.loss(original, prediction)
        return loss, prediction, mask


class ConvAutoencoder(Autoencoder, ConvTrunk):
    """On ConvMAE's encoder. What is hidden never leaks: convolutions see zeros there."""

    def __init__(
        self, *, decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
        norm_pix_loss: bool = False, **trunk: Any,
    ) -> None:  # fmt: skip
        ConvTrunk.__init__(self, **trunk)
        self.norm_pix_loss = norm_pix_loss
        first, second = (embed.proj.out_channels for embed in (self.patch_embed1, self.patch_embed2))
        width, eps = self.pos_embed.shape[2], trunk.get("eps", EPSILON)
        self.pos_embed.requires_grad_(False)
        _, two, three = self.factors
        self.patch = self.side // self.grid
        self.stage1_output_decode = nn.Conv2d(first, width, two * three, two * three)
        self.stage2_output_decode = nn.Conv2d(second, width, three, three)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.initialise()
        self.add_decoder(
            width, self.grid, extra=0, channels=trunk.get("in_chans", 3), embed_dim=decoder_embed_dim,
            depth=decoder_depth, num_heads=decoder_num_heads, mlp_ratio=trunk.get("mlp_ratio", (4, 4, 4))[0], eps=eps,
        )  # fmt: skip

    def encode(self, image: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.arange(self.grid**2, device=image.device)[None, :, None].expand(image.shape[0], -1, 1)
        kept, mask, restore = masking.hide(places, mask_ratio, noise)
        visible = (1 - mask).unflatten(1, (self.grid, self.grid))[:, None].to(image.dtype)
        _, two, three = self.factors
        first, second, tokens = self.stages(image, (_enlarged(visible, two * three), _enlarged(visible, three)))

        def chosen(x: Tensor) -> Tensor:
            return x.gather(1, kept.expand(-1, -1, x.shape[2]))

        below = [
            chosen(decode(x).flatten(2).transpose(1, 2))
            for decode, x in ((self.stage1_output_decode, first), (self.stage2_output_decode, second))
        ]
        return self.norm(self.transform(chosen(tokens)) + below[0] + below[1]), mask, restore


def _enlarged(mask: Tensor, by: int) -> Tensor:
    return mask.repeat_interleave(by, dim=2).repeat_interleave(by, dim=3)


class VisionAutoencoder(Autoencoder):
    """On MAE's encoder."""

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768, depth: int = 12,
        num_heads: int = 12, mlp_ratio: float = 4, decoder_embed_dim: int = 512, decoder_depth: int = 8,
        decoder_num_heads: int = 16, norm_pix_loss: bool = False, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.norm_pix_loss = patch_size, norm_pix_loss
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        grid = self.patch_embed.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos(embed_dim, grid, extra=1))[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.add_decoder(
            embed_dim, grid, extra=1, channels=in_chans, embed_dim=decoder_embed_dim, depth=decoder_depth,
            num_heads=decoder_num_heads, mlp_ratio=mlp_ratio, eps=eps,
        )  # fmt: skip
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)

    def encode(self, image: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        x, mask, restore = masking.hide(self.patch_embed(image) + self.pos_embed[:, 1:], mask_ratio, noise)
        token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([token, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, restore
