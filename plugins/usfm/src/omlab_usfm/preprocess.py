"""From a picture to the networks' inputs, pixel for pixel as upstream does it: Pillow's bicubic for the classifier,
OpenCV's bilinear for the segmenters, ImageNet's mean and standard deviation for both."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.inference.pictures import normalised

#: OpenCV weighs 8-bit pixels by so many parts.
PARTS = 2048


def classification(rgb: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size]; the aspect ratio is not kept."""
    return normalised(np.asarray(Pillow.fromarray(rgb).resize((size, size), Pillow.Resampling.BICUBIC)))


def segmentation(rgb: NDArray[np.uint8], size: int = 512) -> NDArray[np.float32]:
    """[row, column, 3] uint8 to [3, size, size]; the aspect ratio is not kept."""
    return normalised(bilinear(rgb, size, size))


def bilinear(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """[row, column, channel] uint8 resized as OpenCV does it: two neighbours along each axis whatever the scale, in
    whole numbers. Equal to ``cv2.resize(..., INTER_LINEAR)`` to the last bit."""
    if pixels.shape[:2] == (rows, columns):
        return pixels
    first, weight = _neighbours(pixels.shape[1], columns, edge=True)
    left, right = pixels[:, first].astype(np.int32), pixels[:, np.minimum(first + 1, pixels.shape[1] - 1)]
    across = left * (PARTS - weight)[None, :, None] + right.astype(np.int32) * weight[None, :, None]
    first, weight = _neighbours(pixels.shape[0], rows, edge=False)
    above = across[np.clip(first, 0, pixels.shape[0] - 1)] >> 4
    below = across[np.clip(first + 1, 0, pixels.shape[0] - 1)] >> 4
    weight = weight[:, None, None]
    mixed = ((above * (PARTS - weight)) >> 16) + ((below * weight) >> 16)
    return np.clip((mixed + 2) >> 2, 0, 255).astype(np.uint8)


def _neighbours(old: int, new: int, *, edge: bool) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Index of the pixel before each new one, and the weight of the one after it in parts; beyond the edge of a row
    the weight goes to the outermost pixel alone."""
    places = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.intp)
    share = places - first.astype(np.float32)
    if edge:
        outside = (first < 0) | (first >= old - 1)
        share = np.where(outside, np.float32(0), share)
        first = np.clip(first, 0, old - 1)
    return first, np.rint(share * np.float32(PARTS)).astype(np.int32)


def nearest(mask: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """[row, column] labels resized as OpenCV does it: the pixel at or before each place."""
    y = np.minimum((np.arange(rows) * (mask.shape[0] / rows)).astype(np.intp), mask.shape[0] - 1)
    x = np.minimum((np.arange(columns) * (mask.shape[1] / columns)).astype(np.intp), mask.shape[1] - 1)
    return mask[y[:, None], x[None]]
