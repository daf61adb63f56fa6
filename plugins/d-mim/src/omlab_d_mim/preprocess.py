"""From a picture to the networks' inputs, pixel for pixel as upstream does it: a way for each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.inference.pictures import IMAGENET_MEAN, IMAGENET_STD, centre, normalised, shorter_side
from omlab_d_mim.blurs import gaussian

#: UPerNet's picture fits into so many pixels, the longer side into the first.
BOX = (1096, 768)
_WINDOW_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_WINDOW_STD = np.array([58.395, 57.12, 57.375], np.float32)


def as_trained(
    rgb: NDArray[np.uint8], blur: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = gaussian
) -> NDArray[np.uint8]:
    """[row, column, 3] uint8 as the deblurring networks see it: grey, and blurred before anything else."""
    grey: Any = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return np.repeat(blur(grey)[:, :, None], 3, axis=2)


def classification(rgb: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size]: bicubic resize of the shorter side, centre crop, ImageNet's mean and
    standard deviation."""
    return normalised(centre(shorter_side(rgb, int(size / 0.875), Pillow.Resampling.BICUBIC), size))


def pretraining(rgb: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size] as pre-training validates: all of it, bilinear, normalised; its
    proportions are not kept."""
    return normalised(np.asarray(Pillow.fromarray(rgb).resize((size, size), Pillow.Resampling.BILINEAR)))


def segmentation(rgb: NDArray[np.uint8], size: int = 512) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size] for U-Net and U-Net++: all of it, nearest pixels, channels in the order
    blue, green, red. Upstream gives blue the red constants, and the networks were trained so."""
    bgr = cv2.resize(rgb[:, :, ::-1], (size, size), interpolation=cv2.INTER_NEAREST)
    scaled = (bgr / 255.0 - IMAGENET_MEAN.astype(np.float64)) / IMAGENET_STD.astype(np.float64)
    return np.ascontiguousarray(scaled.astype(np.float32).transpose(2, 0, 1))


def mask(grey: NDArray[np.uint8], size: int = 256) -> NDArray[np.float32]:
    """[row, column] uint8 mask to [1, size, size] of 0 and 1, the target of U-Net and U-Net++."""
    small: Any = cv2.resize(grey, (size, size), interpolation=cv2.INTER_NEAREST)
    return (small / 255.0 > 0.5).astype(np.float32)[None]


def fitted(rgb: NDArray[np.uint8], box: tuple[int, int] = BOX) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, rows, columns] for UPerNet: as large as fits into ``box``, bilinear, normalised;
    its proportions are kept."""
    rows, columns = rgb.shape[:2]
    scale = min(max(box) / max(rows, columns), min(box) / min(rows, columns))
    size = (max(1, int(columns * scale + 0.5)), max(1, int(rows * scale + 0.5)))
    resized = cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(((resized.astype(np.float32) - _WINDOW_MEAN) / _WINDOW_STD).transpose(2, 0, 1))


def starts(length: int, window: int = 512, stride: int = 341) -> tuple[int, ...]:
    """First pixel of UPerNet's windows along an axis; the last one is pushed back inside. At 0 alone, where the window
    is the longer."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return tuple(min(i * stride, max(length - window, 0)) for i in range(count))
