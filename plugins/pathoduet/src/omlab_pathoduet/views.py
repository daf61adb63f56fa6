"""Random views of tiles for the three stages of pre-training, with Pillow; what torchvision's transforms do.

A :class:`Views` draws from its own generator, so a run can be repeated. Tiles are [row, column, 3] uint8; views are
[3, rows, columns] float32 in 0..1, as the networks take them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from omlab_pathoduet.preprocess import resized, to_unit
from omlab_sdk.views import RandomViews

Tile = NDArray[np.uint8]
View = NDArray[np.float32]
#: Brightness, contrast, saturation, hue: how far each moves at most.
JITTER = (0.4, 0.4, 0.2, 0.1)
#: Of stains, whose hue says what they are.
STAIN_JITTER = (0.4, 0.4, 0.2, 0.04)


class Views(RandomViews):
    """Draws views.

    Parameters
    ----------
    size : side of the large views in pixels.
    stain_blur : how often a picture is blurred in the third stage.
    """

    def __init__(self, seed: int | Sequence[int] | None = None, *, size: int = 224, stain_blur: float = 0.1) -> None:
        super().__init__(seed)
        self.size, self.stain_blur = size, stain_blur

    def contrast(self, patch: Tile) -> tuple[View, View]:
        """Two views of a patch, for stage 1: one always blurred, one often solarised."""
        picture = Pillow.fromarray(patch)
        one = self._finish(self.coloured(self.cropped(picture, self.size), JITTER), blur=1.0)
        other = self.coloured(self.cropped(picture, self.size), JITTER)
        other = self.sometimes(0.1, self.blurred, other)
        other = self.sometimes(0.2, ImageOps.solarize, other)
        return one, self._finish(other)

    def bridge(self, patch: Tile, region: Tile) -> tuple[View, View, View, View]:
        """Two views of a patch, the patch at 16 x 16, and the region around it, for stage 2."""
        one, other = self.contrast(patch)
        around = self.coloured(
            Pillow.fromarray(region).resize((self.size, self.size), Pillow.Resampling.BILINEAR), JITTER
        )
        ref = self.coloured(Pillow.fromarray(patch).resize((16, 16), Pillow.Resampling.BILINEAR), JITTER)
        return one, other, self._finish(ref), self._finish(around, blur=0.1)

    def cross(self, he: Tile, ihc: Tile) -> tuple[View, View, View]:
        """An H&E image, the IHC image of the same place, and a 16 x 16 crop of the latter, for stage 3. The IHC image
        and its crop have the same colours."""
        eosin = self.sometimes(0.8, self.jittered(STAIN_JITTER), self._centre(Pillow.fromarray(he)))
        stained = self.sometimes(0.8, self.jittered(STAIN_JITTER), Pillow.fromarray(ihc))
        small = resized(np.asarray(stained), 64)
        left, top = (int(self.generator.integers(side - 15)) for side in small.size)
        crop = small.crop((left, top, left + 16, top + 16))
        blur = self.stain_blur
        return (
            self._finish(eosin, blur=blur),
            self._finish(self._centre(stained), blur=blur),
            self._finish(crop, blur=blur),
        )

    def _centre(self, picture: Pillow.Image) -> Pillow.Image:
        """Shorter side to ``size``, centre crop."""
        picture = resized(np.asarray(picture), self.size)
        left, top = (round((side - self.size) / 2) for side in picture.size)
        return picture.crop((left, top, left + self.size, top + self.size))

    def _finish(self, picture: Pillow.Image, *, blur: float = 0.0) -> View:
        picture = self.sometimes(blur, self.blurred, picture)
        return to_unit(self.sometimes(0.5, ImageOps.mirror, picture))
