"""Random views of tiles for the three stages of pre-training, with Pillow; what torchvision's transforms do.

A :class:`Views` draws from its own generator, so a run can be repeated. Tiles are [row, column, 3] uint8; views are
[3, rows, columns] float32 in 0..1, as the networks take them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageFilter, ImageOps

from omlab_pathoduet.preprocess import resized, to_unit

Tile = NDArray[np.uint8]
View = NDArray[np.float32]
#: Brightness, contrast, saturation, hue: how far each moves at most.
JITTER = (0.4, 0.4, 0.2, 0.1)
#: Of stains, whose hue says what they are.
STAIN_JITTER = (0.4, 0.4, 0.2, 0.04)


class Views:
    """Draws views.

    Parameters
    ----------
    size : side of the large views in pixels.
    stain_blur : how often a picture is blurred in the third stage.
    """

    def __init__(self, seed: int | None = None, *, size: int = 224, stain_blur: float = 0.1) -> None:
        self.generator = np.random.default_rng(seed)
        self.size, self.stain_blur = size, stain_blur

    def contrast(self, patch: Tile) -> tuple[View, View]:
        """Two views of a patch, for stage 1: one always blurred, one often solarised."""
        picture = Pillow.fromarray(patch)
        one = self._finish(self._coloured(self._cropped(picture)), blur=1.0)
        other = self._coloured(self._cropped(picture))
        other = self._sometimes(0.1, self._blurred, other)
        other = self._sometimes(0.2, ImageOps.solarize, other)
        return one, self._finish(other)

    def bridge(self, patch: Tile, region: Tile) -> tuple[View, View, View, View]:
        """Two views of a patch, the patch at 16 x 16, and the region around it, for stage 2."""
        one, other = self.contrast(patch)
        around = self._coloured(Pillow.fromarray(region).resize((self.size, self.size), Pillow.Resampling.BILINEAR))
        ref = self._coloured(Pillow.fromarray(patch).resize((16, 16), Pillow.Resampling.BILINEAR))
        return one, other, self._finish(ref), self._finish(around, blur=0.1)

    def cross(self, he: Tile, ihc: Tile) -> tuple[View, View, View]:
        """An H&E image, the IHC image of the same place, and a 16 x 16 crop of the latter, for stage 3. The IHC image
        and its crop have the same colours."""
        eosin = self._sometimes(0.8, self._jittered(STAIN_JITTER), self._centre(Pillow.fromarray(he)))
        stained = self._sometimes(0.8, self._jittered(STAIN_JITTER), Pillow.fromarray(ihc))
        small = resized(np.asarray(stained), 64)
        left, top = (int(self.generator.integers(side - 15)) for side in small.size)
        crop = small.crop((left, top, left + 16, top + 16))
        blur = self.stain_blur
        return (
            self._finish(eosin, blur=blur),
            self._finish(self._centre(stained), blur=blur),
            self._finish(crop, blur=blur),
        )

    def _sometimes(
        self, share: float, change: Callable[[Pillow.Image], Pillow.Image], picture: Pillow.Image
    ) -> Pillow.Image:
        return change(picture) if self.generator.random() < share else picture

    def _centre(self, picture: Pillow.Image) -> Pillow.Image:
        """Shorter side to ``size``, centre crop."""
        picture = resized(np.asarray(picture), self.size)
        left, top = (round((side - self.size) / 2) for side in picture.size)
        return picture.crop((left, top, left + self.size, top + self.size))

    def _cropped(self, picture: Pillow.Image) -> Pillow.Image:
        """A part of 8 to 100 % of the area, 3:4 to 4:3, brought to ``size``."""
        columns, rows = picture.size
        for _ in range(10):
            area = rows * columns * self.generator.uniform(0.08, 1.0)
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
        return picture.crop(box).resize((self.size, self.size), Pillow.Resampling.BILINEAR)

    def _coloured(self, picture: Pillow.Image) -> Pillow.Image:
        picture = self._sometimes(0.8, self._jittered(JITTER), picture)
        return self._sometimes(0.2, lambda one: one.convert("L").convert("RGB"), picture)

    def _jittered(self, most: tuple[float, float, float, float]) -> Callable[[Pillow.Image], Pillow.Image]:
        """Brightness, contrast, saturation and hue changed, in a random order."""

        def change(picture: Pillow.Image) -> Pillow.Image:
            enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for what in self.generator.permutation(4):
                amount = float(self.generator.uniform(-most[what], most[what]))
                picture = _hue(picture, amount) if what == 3 else enhancers[what](picture).enhance(1 + amount)
            return picture

        return change

    def _blurred(self, picture: Pillow.Image) -> Pillow.Image:
        return picture.filter(ImageFilter.GaussianBlur(self.generator.uniform(0.1, 2.0)))

    def _finish(self, picture: Pillow.Image, *, blur: float = 0.0) -> View:
        picture = self._sometimes(blur, self._blurred, picture)
        return to_unit(self._sometimes(0.5, ImageOps.mirror, picture))


def _hue(picture: Pillow.Image, turn: float) -> Pillow.Image:
    """Hues turned by a share of the circle."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + int(turn * 255)) % 256
    return Pillow.merge("HSV", (Pillow.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
