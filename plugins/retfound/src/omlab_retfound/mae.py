"""The masked autoencoder that RETFound is pre-trained with (He et al. 2022), and its objective."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from omlab_retfound.network import EPSILON, Block, PatchEmbed
from omlab_retfound.tables import sincos
from omlab_sdk.networks import masking


class MaskedAutoencoder(nn.Module):
    """Encoder over the kept patches, decoder over all; ``forward`` gives (loss, prediction, mask).

    State-dict names are upstream's. The position tables are fixed sines and cosines that the state dict holds.
    """

    def __init__(
        self, *, img_size: int = 224, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 1024, depth: int = 24,
        num_heads: int = 16, decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
        mlp_ratio: float = 4, norm_pix_loss: bool = False, eps: float = EPSILON,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_size, self.channels, self.norm_pix_loss = patch_size, in_chans, norm_pix_loss
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        grid = img_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.from_numpy(sincos(embed_dim, grid))[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=eps)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        decoder_table = torch.from_numpy(sincos(decoder_embed_dim, grid))[None]
        self.decoder_pos_embed = nn.Parameter(decoder_table, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, eps=eps) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=eps)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def patchify(self, image: Tensor) -> Tensor:
        """[batch, channels, rows, columns] to [batch, patches, row * column * channel], channel fastest."""
        return masking.patchify(image, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`patchify`, for square grids."""
        return masking.unpatchify(patches, self.patch_size, self.channels)

    def encode(self, image: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(latent [batch, 1 + kept, width], mask [batch, patches] with 1 for removed, order that restores).

        Parameters
        ----------
        noise : [batch, patches], the smallest are kept; uniform random numbers without it.
        """
        x, mask, restore = masking.hide(self.patch_embed(image) + self.pos_embed[:, 1:], mask_ratio, noise)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, restore

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Prediction of every patch, [batch, patches, pixels of a patch]."""
        x = self.decoder_embed(latent)
        patches = masking.reveal(x[:, 1:], self.mask_token, restore)
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(x))[:, 1:])

    def loss(self, image: Tensor, prediction: Tensor, mask: Tensor, *, norm_pix: bool | None = None) -> Tensor:
        """Mean squared error over the removed patches; with ``norm_pix`` against patches of mean 0 and (unbiased)
        variance 1."""
        normalised = self.norm_pix_loss if norm_pix is None else norm_pix
        return masking.error(self.patchify(image), prediction, mask, norm_pix=normalised)

    def forward(
        self, image: Tensor, mask_ratio: float = 0.75, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, prediction, mask)."""
        latent, mask, restore = self.encode(image, mask_ratio, noise)
        prediction = self.decode(latent, restore)
        return self.loss(image, prediction, mask), prediction, mask
