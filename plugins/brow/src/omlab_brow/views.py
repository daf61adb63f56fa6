"""Random views of patches for pre-training, with Pillow. Views are [3, row, column] float32, normalised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from omlab_brow.preprocess import normalised
from omlab_sdk.views import RandomViews

Tile = NDArray[np.uint8]
View = NDArray[np.float32]
#: Brightness, contrast, saturation, hue: how far each moves at most. DINO's.
JITTER = (0.4, 0.4, 0.2, 0.1)
#: Shares of the area that global and local views show. DINO's.
GLOBAL, LOCAL = (0.4, 1.0), (0.05, 0.4)


class Views(RandomViews):
    """Draws views of a patch and of the region around it.

    Parameters
    ----------
    size, small : sides of global and of local views in pixels.
    local : how many local views.
    pieces : a shuffled view is cut into so many rows and columns.
    shuffle : how often a global view of the student is shuffled.
    """

    def __init__(
        self, seed: int | None = None, *, size: int = 224, small: int = 96, local: int = 8, pieces: int = 4,
        shuffle: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(seed)
        self.size, self.small, self.local, self.pieces, self.shuffle = size, small, local, pieces, shuffle

    def draw(self, patch: Tile, around: Tile) -> tuple[list[View], list[View]]:
        """Views for the teacher (two of the patch, one of the region) and for the student (the same, at times shuffled,
        and then local ones).

        Parameters
        ----------
        patch : [row, column, RGB] at the training magnification.
        around : the region around it at a lower magnification, from the slide's pyramid.
        """
        picture, region = Pillow.fromarray(patch), Pillow.fromarray(around)
        large = [
            self._finish(self.blurred(self._changed(picture, self.size, GLOBAL))),
            self._finish(
                self.sometimes(
                    0.2, ImageOps.solarize,
                    self.sometimes(0.1, self.blurred, self._changed(picture, self.size, GLOBAL)),
                )
            ),
            self._finish(self.sometimes(0.1, self.blurred, self._changed(region, self.size, GLOBAL))),
        ]  # fmt: skip
        seen = [self.shuffled(view) if self.generator.random() < self.shuffle else view for view in large]
        few = [
            self._finish(self.sometimes(0.5, self.blurred, self._changed(picture, self.small, LOCAL)))
            for _ in range(self.local)
        ]
        return large, [*seen, *few]

    def shuffled(self, view: View) -> View:
        """A view cut into squares that change places. A remainder that fills no square stays."""
        side = view.shape[1] // self.pieces
        out = view.copy()
        places = [(r * side, c * side) for r in range(self.pieces) for c in range(self.pieces)]
        for (top, left), source in zip(places, self.generator.permutation(len(places)).tolist(), strict=True):
            y, x = places[source]
            out[:, top : top + side, left : left + side] = view[:, y : y + side, x : x + side]
        return out

    def _changed(self, picture: Pillow.Image, size: int, scale: tuple[float, float]) -> Pillow.Image:
        return self.coloured(self.cropped(picture, size, scale, Pillow.Resampling.BICUBIC), JITTER)

    def _finish(self, picture: Pillow.Image) -> View:
        return normalised(np.asarray(self.sometimes(0.5, ImageOps.mirror, picture)))
