"""Pictures as classifiers of natural images take them, pixel for pixel as torchvision does it, with Pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

#: Of red, green and blue in 0..1.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def shorter_side(rgb: NDArray[np.uint8], shorter: int, resample: Pillow.Resampling) -> Pillow.Image:
    """[row, column, 3] uint8 resized to a shorter side of so many pixels; the longer one is rounded down."""
    picture = Pillow.fromarray(rgb)
    width, height = picture.size
    if width <= height:
        target = (shorter, int(shorter * height / width))
    else:
        target = (int(shorter * width / height), shorter)
    return picture if target == picture.size else picture.resize(target, resample)


def centre(picture: Pillow.Image, size: int) -> NDArray[np.uint8]:
    """[size, size, 3]: the middle; black where the picture is smaller."""
    left, top = (round((side - size) / 2.0) for side in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def normalised(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, row, column] float32 of ImageNet's mean and standard deviation."""
    scaled = rgb.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((scaled - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1))
