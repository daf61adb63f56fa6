"""The blurs that upstream offers for deblurring pre-training, on grey 8-bit pictures; the published networks saw the
Gaussian one. Borders are mirrored without repeating the outermost pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
#: Standard deviation in pixels that the published deblurring networks were trained with.
SIGMA = 1.1
#: Pixels: side of the squares of mean, median and motion; radius of the disk of defocus.
SIZE, RADIUS = 5, 5
#: Standard deviation in pixels that softens the rim of the disk: next to nothing.
ALIAS = 0.01


def gaussian(grey: Grey, sigma: float = SIGMA) -> Grey:
    """[row, column] uint8 blurred by OpenCV's Gaussian for 8-bit images, whose size follows from ``sigma``."""
    return cv2.GaussianBlur(grey, (0, 0), sigma)  # type: ignore[return-value]


def mean(grey: Grey, size: int = SIZE) -> Grey:
    """[row, column] uint8: the mean of a square around each pixel."""
    return cv2.blur(grey, (size, size))  # type: ignore[return-value]


def median(grey: Grey, size: int = SIZE) -> Grey:
    """[row, column] uint8: the median of a square around each pixel. Upstream means it, but its call fails."""
    return cv2.medianBlur(grey, size)  # type: ignore[return-value]


def defocus(grey: Grey, radius: int = RADIUS, alias: float = ALIAS) -> Grey:
    """[row, column] uint8: the mean of a disk around each pixel, as of a lens out of focus.

    Parameters
    ----------
    alias : standard deviation of a Gaussian over 3 x 3 pixels that softens the rim of the disk.
    """
    return _filtered(grey, disk(radius, alias))


def disk(radius: int, alias: float = ALIAS) -> NDArray[np.float32]:
    """Weights of :func:`defocus`, [n, n] of sum 1; the rim has a pixel of room to be softened in."""
    along = np.arange(-radius - 1, radius + 2)
    inside = (along[:, None] ** 2 + along[None, :] ** 2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(inside / inside.sum(), (3, 3), alias, borderType=cv2.BORDER_CONSTANT)  # type: ignore[return-value]


def motion(grey: Grey, generator: np.random.Generator, size: int = SIZE) -> Grey:
    """[row, column] uint8: the mean along a line of random length and direction, :func:`streak`."""
    return _filtered(grey, streak(generator, size))


def streak(generator: np.random.Generator, size: int = SIZE) -> NDArray[np.float32]:
    """Weights of :func:`motion`, [size, size] of sum 1: a line between two different pixels of the square."""
    start, end = (divmod(int(place), size) for place in generator.choice(size**2, 2, replace=False))
    line: Any = cv2.line(np.zeros((size, size), np.uint8), start, end, 1)
    return (line / np.float32(line.sum())).astype(np.float32)


def _filtered(grey: Grey, weights: NDArray[np.float32]) -> Grey:
    return cv2.filter2D(grey, -1, weights)  # type: ignore[return-value]


#: Name -> blurs a picture; what is drawn comes from the generator.
BLURS: Mapping[str, Callable[[Grey, np.random.Generator], Grey]] = {
    **{
        name: partial(lambda blur, grey, _: blur(grey), blur)
        for name, blur in (("gaussian", gaussian), ("mean", mean), ("median", median), ("defocus", defocus))
    },
    "motion": motion,
}
