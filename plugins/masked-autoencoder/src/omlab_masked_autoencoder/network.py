"""A masked autoencoder around the transformer of any embedder: its encoder learns, the decoder is thrown away."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from omlab.errors import UsageError
from omlab_sdk.adapting.networks import tokens_of, transformer_of
from omlab_sdk.networks import masking
from omlab_sdk.networks.vit import EPSILON, Block, sincos

#: Width of a head of the decoder's attention, as He et al. have it.
_HEAD = 32


class MaskedAutoencoder(nn.Module):
    """Image [batch, channels, side, side] to the loss; the encoder is a part of the network that is pre-trained.

    Parameters
    ----------
    network : has a part with ``patch_embed``, ``blocks`` and a table ``pos_embed``. Its last norm is what the part
        calls ``norm``, else one that is left behind with the decoder.
    channels, side : of the images.
    width, depth : of the decoder; without, half the width and a third of the blocks of the encoder.

    Raises
    ------
    UsageError
        The network has no such part, or images cannot be cut into its patches.
    """

    def __init__(
        self, network: nn.Module, name: str, channels: int, side: int, *, mask_ratio: float, norm_pix: bool,
        width: int | None = None, depth: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        encoder: Any = transformer_of(network, name)
        self._encoder = (encoder,)  # in a tuple: its weights are already those of `network`
        self.extra = tokens_of(encoder)
        table = getattr(encoder, "pos_embed", None)
        if not isinstance(table, Tensor) or table.ndim != 3:
            raise UsageError(f"the network of '{name}' has no table 'pos_embed' [1, tokens, width]")
        count, own = table.shape[1] - self.extra, table.shape[2]
        grid = round(count**0.5)
        if grid * grid != count or side % grid:
            raise UsageError(f"'{name}' cuts images of {side} pixels into {count} patches, which is no square grid")
        if not 0 < mask_ratio < 1 or not 0 < int(count * (1 - mask_ratio)) < count:
            raise UsageError(f"a share of {mask_ratio} cannot be hidden of {count} patches")
        self.patch, self.mask_ratio, self.norm_pix = side // grid, mask_ratio, norm_pix
        width = width or max(_HEAD, own // 2 // _HEAD * _HEAD)
        if width % _HEAD:
            raise UsageError(f"the width of the decoder must be a multiple of {_HEAD}, found {width}")
        depth = depth or max(2, len(encoder.blocks) // 3)
        self.norm = None if isinstance(getattr(encoder, "norm", None), nn.LayerNorm) else nn.LayerNorm(own, eps=EPSILON)
        self.decoder_embed = nn.Linear(own, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.from_numpy(sincos(width, grid, extra=self.extra))[None]
        self.register_buffer("decoder_positions", positions, persistent=False)
        self.decoder_blocks = nn.ModuleList(Block(width, width // _HEAD) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=EPSILON)
        self.decoder_pred = nn.Linear(width, self.patch**2 * channels)
        for module in (self.decoder_embed, *self.decoder_blocks.modules(), self.decoder_pred):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        table.requires_grad_(False)  # positions stay, as in the paper

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The loss; ``noise`` [batch, patches] says which patches are hidden, drawn without it."""
        (encoder,) = self._encoder
        patches = encoder.patch_embed(image)
        if patches.ndim == 4:
            patches = patches.flatten(2).transpose(1, 2)
        positions = encoder.pos_embed
        x, mask, restore = masking.hide(patches + positions[:, self.extra :], self.mask_ratio, noise)
        if self.extra:
            first = (encoder.cls_token + positions[:, : self.extra]).expand(len(x), -1, -1)
            x = torch.cat([first, x], dim=1)
        for block in encoder.blocks:
            x = block(x)
        x = self.decoder_embed((encoder.norm if self.norm is None else self.norm)(x))
        every = masking.reveal(x[:, self.extra :], self.mask_token, restore)
        x = torch.cat([x[:, : self.extra], every], dim=1) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        prediction = cast(Tensor, self.decoder_pred(self.decoder_norm(x))[:, self.extra :])
        target = masking.patchify(image, self.patch)
        return masking.error(target, prediction, mask, norm_pix=self.norm_pix)
