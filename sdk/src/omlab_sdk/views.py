"""Random views of pictures for pre-training and fine-tuning, with Pillow; what torchvision's transforms do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageFilter

#: Brightness, contrast, saturation, hue: how far each moves at most.
Jitter = tuple[float, float, float, float]


class RandomViews:
    """Draws changes of pictures from its own generator, so that a run can be repeated."""

    def __init__(self, seed: int | Sequence[int] | None = None) -> None:
        self.generator = np.random.default_rng(seed)

    def sometimes(
        self, share: float, change: Callable[[Pillow.Image], Pillow.Image], picture: Pillow.Image
    ) -> Pillow.Image:
        """The picture, changed with this probability."""
        return change(picture) if self.generator.random() < share else picture

    def cropped(
        self, picture: Pillow.Image, size: int, scale: tuple[float, float] = (0.08, 1.0),
        resample: Pillow.Resampling = Pillow.Resampling.BILINEAR,
    ) -> Pillow.Image:  # fmt: skip
        """A part of this share of the area, 3:4 to 4:3, brought to ``size`` x ``size`` pixels."""
        columns, rows = picture.size
        for _ in range(10):
            area = rows * columns * self.generator.uniform(*scale)
            ratio = np.exp(self.generator.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < width <= columns and 0 < height <= rows:
                left = int(self.generator.integers(columns - width + 1))
                top = int(self.generator.integers(rows - height + 1))
                break
        else:  # a picture so long that no such part fits: the largest one in its centre
            width, height = min(columns, round(rows * 4 / 3)), min(rows, round(columns * 4 / 3))
            left, top = (columns - width) // 2, (rows - height) // 2
        box = (left, top, left + width, top + height)
        return picture.crop(box).resize((size, size), resample)

    def jittered(self, most: Jitter) -> Callable[[Pillow.Image], Pillow.Image]:
        """Brightness, contrast, saturation and hue changed, in a random order."""

        def change(picture: Pillow.Image) -> Pillow.Image:
            enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for what in self.generator.permutation(4):
                amount = float(self.generator.uniform(-most[what], most[what]))
                picture = hue_turned(picture, amount) if what == 3 else enhancers[what](picture).enhance(1 + amount)
            return picture

        return change

    def blurred(self, picture: Pillow.Image) -> Pillow.Image:
        """Blurred by a Gaussian of 0.1 to 2 pixels."""
        return picture.filter(ImageFilter.GaussianBlur(self.generator.uniform(0.1, 2.0)))

    def coloured(self, picture: Pillow.Image, most: Jitter) -> Pillow.Image:
        """Mostly with changed colours, at times grey."""
        picture = self.sometimes(0.8, self.jittered(most), picture)
        return self.sometimes(0.2, lambda one: one.convert("L").convert("RGB"), picture)


def hue_turned(picture: Pillow.Image, turn: float) -> Pillow.Image:
    """Hues turned by a share of the circle."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + int(turn * 255)) % 256
    return Pillow.merge("HSV", (Pillow.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
