"""Masked image modelling in space and frequency: omlab's own recipe, not the authors'.

The authors describe the idea (an image degraded by masked blocks and by rings taken out of its spectrum is restored,
compared in space and in frequency) and publish the two degradations (:mod:`omlab_usfm.masking`) and the encoder; the
decoder, the losses and their weights are not in their code. This module completes them as SimMIM does: a decoder of one
layer, an L1 loss on masked pixels, and one on the spectrum. It trains; it does not claim to give their weights.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omlab_sdk.networks.vit import EPSILON
from omlab_usfm.network import TRAINED, Trunk


class MaskedEncoder(Trunk):
    """The encoder of the published file, entry by entry: one table shared by all blocks, and a mask token."""

    def __init__(self, **trunk: Any) -> None:
        super().__init__(**(TRAINED | {"use_shared_rel_pos_bias": True} | trunk))
        width = self.cls_token.shape[2]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width, eps=trunk.get("eps", EPSILON))
        self.initialise()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """[batch, width, rows, columns] of patches; those where ``mask`` [batch, rows, columns] is 1 are not seen."""
        patches = self.patch_embed(image)
        hidden = mask.flatten(1)[:, :, None].to(patches.dtype)
        patches = patches * (1 - hidden) + self.mask_token * hidden
        x = self.norm(self.trunk(self.tokens(patches))[-1])
        return cast(Tensor, x[:, 1:].transpose(1, 2).unflatten(2, mask.shape[1:]))


class SpatialFrequencyMIM(nn.Module):
    """Encoder and decoder; ``forward`` gives the loss, ``terms`` its parts.

    Parameters
    ----------
    frequency_weight : of the spectrum's part.
    """

    def __init__(self, encoder: MaskedEncoder | None = None, *, frequency_weight: float = 1.0) -> None:
        super().__init__()
        self.encoder = encoder or MaskedEncoder()
        self.frequency_weight = frequency_weight
        self.patch = self.encoder.patch_embed.patch
        proj = cast(nn.Conv2d, self.encoder.patch_embed.proj)
        self.decoder = nn.Sequential(
            nn.Conv2d(proj.out_channels, self.patch**2 * proj.in_channels, 1), nn.PixelShuffle(self.patch)
        )

    def restore(self, degraded: Tensor, mask: Tensor) -> Tensor:
        """The whole image [batch, channels, rows, columns] from a degraded one and the mask of its patches."""
        return cast(Tensor, self.decoder(self.encoder(degraded, mask)))

    def terms(self, image: Tensor, mask: Tensor, degraded: Tensor | None = None) -> dict[str, Tensor]:
        """``space``: mean absolute difference of masked pixels; ``frequency``: of the spectrum, relative to its size.

        Parameters
        ----------
        degraded : what the encoder sees, say without some rings of the spectrum; the image itself without one.
        """
        restored = self.restore(image if degraded is None else degraded, mask)
        pixels = mask.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)[:, None].to(image.dtype)
        gap = (F.l1_loss(restored, image, reduction="none") * pixels).sum()
        spectrum, truth = (torch.fft.fft2(x, norm="ortho") for x in (restored, image))
        return {
            "space": gap / (pixels.sum() + 1e-5) / image.shape[1],
            "frequency": (spectrum - truth).abs().mean(),
        }

    def forward(self, image: Tensor, mask: Tensor, degraded: Tensor | None = None) -> Tensor:
        """The weighted sum of :meth:`terms`."""
        found = self.terms(image, mask, degraded)
        return found["space"] + self.frequency_weight * found["frequency"]
