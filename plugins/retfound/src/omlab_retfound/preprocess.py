"""From a picture to the network's input, pixel for pixel as upstream's torchvision and notebook do it, with Pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.inference.pictures import centre, normalised, shorter_side

#: Up to this input size the picture is first made larger by 256/224 and cropped.
CROPPED_UP_TO = 224


def evaluation(rgb: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size]: bicubic resize of the shorter side, centre crop, ImageNet mean and
    standard deviation."""
    shorter = int(size / 0.875) if size <= CROPPED_UP_TO else size
    return normalised(centre(shorter_side(rgb, shorter, Pillow.Resampling.BICUBIC), size))


def zscore(rgb: NDArray[np.uint8], size: int = 224) -> NDArray[np.float64]:
    """[row, column, 3] uint8 to [size, size, 3] float64 of mean 0 and standard deviation 1 in each channel: the
    feature notebook's way. The aspect ratio is not kept."""
    resized = np.asarray(Pillow.fromarray(rgb).resize((size, size), Pillow.Resampling.BICUBIC)) / 255.0
    spread = resized.std(axis=(0, 1))
    # A flat channel has no spread; it becomes 0 and not NaN.
    return (resized - resized.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1.0)
