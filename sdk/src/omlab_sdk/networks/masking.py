"""The objective of masked autoencoders (He et al. 2022): patches, which of them are hidden, and the error."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(image: Tensor, patch: int) -> Tensor:
    """[batch, channels, side, side] to [batch, patches, row * column * channel], channel fastest."""
    batch, channels, size = image.shape[0], image.shape[1], image.shape[2] // patch
    cut = image.reshape(batch, channels, size, patch, size, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, size * size, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, channels: int) -> Tensor:
    """The inverse of :func:`patchify`, for square grids."""
    batch, count = patches.shape[0], int(patches.shape[1] ** 0.5)
    cut = patches.reshape(batch, count, count, patch, patch, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, count * patch, count * patch)


def hide(tokens: Tensor, ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens that are kept [batch, kept, width], mask [batch, patches] with 1 for hidden, order that restores).

    Parameters
    ----------
    tokens : [batch, patches, width].
    noise : [batch, patches], the smallest are kept; uniform random numbers without it.
    """
    batch, count, width = tokens.shape
    if noise is None:
        noise = torch.rand(batch, count, device=tokens.device)
    keep = int(count * (1 - ratio))
    shuffled = torch.argsort(noise, dim=1)
    restore = torch.argsort(shuffled, dim=1)
    kept = tokens.gather(1, shuffled[:, :keep, None].expand(-1, -1, width))
    mask = torch.ones(batch, count, device=tokens.device)
    mask[:, :keep] = 0
    return kept, mask.gather(1, restore), restore


def reveal(tokens: Tensor, token: Tensor, restore: Tensor) -> Tensor:
    """Tokens that were kept [batch, kept, width] and ``token`` [1, 1, width] for the hidden ones, in the order of the
    image."""
    batch, count = restore.shape
    hidden = token.expand(batch, count - tokens.shape[1], -1)
    every = torch.cat([tokens, hidden], dim=1)
    return every.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[2]))


def error(target: Tensor, prediction: Tensor, mask: Tensor, *, norm_pix: bool) -> Tensor:
    """Mean squared error over the hidden patches [batch, patches, pixels]; with ``norm_pix`` against patches of mean 0
    and (unbiased) variance 1."""
    if norm_pix:
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    wrong = (prediction - target).square().mean(dim=-1)
    return (wrong * mask).sum() / mask.sum()
