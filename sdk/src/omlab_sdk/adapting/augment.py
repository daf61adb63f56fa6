"""Changes of prepared image tensors while training: shifts, scale, turns, brightness and contrast; flips if asked for.

Flips are off by default, and stay off for radiographs: mirrored, a chest has its heart on the right, which is a finding
(dextrocardia) and not another view; the marker of the side is mirrored too. For fundus photographs, where left and
right eyes are mirror images, dermoscopy and histopathology ``--flip`` is sound.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Strength = Literal["none", "mild", "strong"]


@attrs.frozen(kw_only=True)
class Augment:
    """Draws for each image of a batch [batch, channels, rows, columns]; tensors of other rank only change intensity.

    Attributes
    ----------
    shift : greatest share of the side.
    inside : what is seen is a square within the image, anywhere, in place of ``shift``; for scales up to 1.
    scale : smallest and greatest side of what is seen, as a share of the image's.
    turn : greatest angle in degrees.
    brightness, contrast : greatest change, in standard deviations of the image and as a share.
    flip : mirror half of the images left to right.
    """

    shift: float = 0.0
    inside: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    turn: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    flip: bool = False

    @classmethod
    def of(cls, strength: str, flip: bool) -> Augment | None:
        """A named strength; ``None`` where nothing is changed."""
        if strength == "none":
            return cls(flip=True) if flip else None
        if strength == "mild":
            return cls(shift=0.06, scale=(0.92, 1.08), turn=5, brightness=0.1, contrast=0.1, flip=flip)
        return cls(shift=0.12, scale=(0.75, 1.15), turn=15, brightness=0.25, contrast=0.25, flip=flip)

    @classmethod
    def crop(cls, smallest: float, flip: bool) -> Augment:
        """Squares of at least the share ``smallest`` of the area, anywhere in the image."""
        return cls(inside=True, scale=(math.sqrt(smallest), 1.0), flip=flip)

    def __call__(self, batch: tuple[Any, ...], generator: Generator) -> tuple[Any, ...]:
        """The batch with its first tensor changed."""
        return (self.images(batch[0], generator), *batch[1:])

    def images(self, images: Tensor, generator: Generator) -> Tensor:
        """A changed copy of the images."""
        count = len(images)

        def drawn(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator)

        angle, size = drawn(-self.turn, self.turn) * math.pi / 180, drawn(*self.scale)
        across, down = drawn(-1, 1), drawn(-1, 1)
        mirrored = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if self.flip else 1.0
        bright, contrast = drawn(-self.brightness, self.brightness), drawn(-self.contrast, self.contrast)
        if images.ndim == 4 and (self.shift or self.turn or self.flip or self.scale != (1.0, 1.0)):
            cos, sin = size * angle.cos(), size * angle.sin()
            # the grid runs from -1 to 1, so a share of the side counts twice
            far = 1 - size if self.inside else torch.full((count,), 2 * self.shift)
            rows = [cos * mirrored, -sin, far * across, sin * mirrored, cos, far * down]
            turns = torch.stack(rows, dim=1).reshape(count, 2, 3)
            grid = F.affine_grid(turns, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.brightness or self.contrast:
            shape = (count,) + (1,) * (images.ndim - 1)
            axes = tuple(range(1, images.ndim))
            mean, spread = images.mean(axes, keepdim=True), images.std(axes, keepdim=True)
            images = (images - mean) * (1 + contrast.reshape(shape)) + mean + bright.reshape(shape) * spread
        return images
