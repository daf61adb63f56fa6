"""From a tile to the network's input, pixel for pixel as upstream's torchvision does it, with Pillow.

The network takes values in 0..1: there is no mean and no standard deviation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.inference.pictures import shorter_side


def evaluation(rgb: NDArray[np.uint8], size: int = 224, shorter: int = 256) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size]: bilinear resize of the shorter side, centre crop, to 0..1."""
    picture = resized(rgb, shorter)
    left, top = (round((side - size) / 2.0) for side in picture.size)
    return to_unit(picture.crop((left, top, left + size, top + size)))


def whole(rgb: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size]: the whole tile, bilinear; the aspect ratio is not kept."""
    return to_unit(Pillow.fromarray(rgb).resize((size, size), Pillow.Resampling.BILINEAR))


def reference(rgb: NDArray[np.uint8], size: int = 16) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, rows, columns] with a shorter side of ``size``: the pretext token's image."""
    return to_unit(resized(rgb, size))


def resized(rgb: NDArray[np.uint8], shorter: int) -> Pillow.Image:
    """The picture with a shorter side of so many pixels, bilinear."""
    return shorter_side(rgb, shorter, Pillow.Resampling.BILINEAR)


def to_unit(picture: Pillow.Image) -> NDArray[np.float32]:
    """[3, row, column] in 0..1."""
    return np.ascontiguousarray(np.asarray(picture, np.float32).transpose(2, 0, 1)) / np.float32(255)
