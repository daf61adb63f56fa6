"""From pictures to the square frame of the network, and back to the picture's own pixels.

Three ways lead into the frame, and each is a :class:`Frame` that also knows the way back:

``stretch``
    SAM-Med2D's predictor: normalise, then nearest resize to the frame, the aspect ratio not kept.
``evaluation``
    SAM-Med2D's test script: blue, green and red are normalised with the means of red, green and blue; a picture
    smaller than the frame is centred in zeros, any other resized as above.
``longest``
    Segment Anything's predictor: bilinear resize so that the longer side fills the frame, zeros at the right and
    bottom.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Of red, green and blue in 0..255, the statistics of ImageNet.
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
WAYS = ("stretch", "evaluation", "longest")


@attrs.frozen(eq=False)
class Frame:
    """How a picture lies in the frame.

    Attributes
    ----------
    size : side S of the frame.
    shape : (rows, columns) of the picture.
    inner : (rows, columns) that the picture takes up in the frame.
    offset : (row, column) in the frame of its first pixel.
    """

    size: int
    shape: tuple[int, int]
    inner: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    def into(self, places: ArrayLike) -> NDArray[np.float32]:
        """(x, y) in pixels of the picture [..., 2] to pixels of the frame."""
        scale = np.array([self.inner[1] / self.shape[1], self.inner[0] / self.shape[0]])
        shift = np.array([self.offset[1], self.offset[0]])
        return (np.asarray(places, dtype=np.float64) * scale + shift).astype(np.float32)

    def restore(self, low: NDArray[np.float32]) -> NDArray[np.float32]:
        """Low-resolution logits [..., S / 4, S / 4] to the picture's pixels [..., rows, columns].

        Bilinear to the frame, cut to the picture, bilinear to the picture: both steps are linear and act on rows and
        columns apart, so they are one small matrix a side.
        """
        down = _chain(low.shape[-2], self.size, self.offset[0], self.inner[0], self.shape[0])
        across = _chain(low.shape[-1], self.size, self.offset[1], self.inner[1], self.shape[1])
        return np.asarray(down @ low @ across.T, dtype=np.float32)

    def to_low(self, mask: NDArray[Any], low: int) -> NDArray[np.float32]:
        """A mask [rows, columns] of the picture as probabilities [low, low]: the share of each cell that is covered.

        Cells outside of the picture are 0.
        """
        coverage = [_coverage(self.shape[axis], self.inner[axis], self.offset[axis], self.size, low) for axis in (0, 1)]
        return np.asarray(coverage[0] @ mask.astype(np.float32) @ coverage[1].T, dtype=np.float32)


def frame_of(shape: tuple[int, int], size: int, way: str = "stretch") -> Frame:
    """The frame of a picture of ``shape``."""
    rows, columns = shape
    if way == "evaluation" and rows < size and columns < size:
        return Frame(size, shape, shape, ((size - rows) // 2, (size - columns) // 2))
    if way == "longest":
        scale = size / max(shape)
        return Frame(size, shape, (int(rows * scale + 0.5), int(columns * scale + 0.5)))
    return Frame(size, shape, (size, size))


def encoder_input(rgb: NDArray[np.uint8], frame: Frame, way: str = "stretch") -> NDArray[np.float32]:
    """Picture [row, column, RGB] uint8 to the encoder's input [1, 3, S, S] float32."""
    if way == "longest":
        from PIL import Image

        resized = Image.fromarray(rgb).resize((frame.inner[1], frame.inner[0]), Image.Resampling.BILINEAR)
        placed = normalise(np.asarray(resized))
    elif way == "evaluation":
        placed = normalise(rgb[:, :, ::-1])
    else:
        placed = normalise(rgb)
    if way != "longest" and frame.inner != frame.shape:
        placed = nearest(placed, frame.inner)
    if placed.shape[:2] != (frame.size, frame.size):
        whole = np.zeros((frame.size, frame.size, 3), np.float32)
        top, left = frame.offset
        whole[top : top + placed.shape[0], left : left + placed.shape[1]] = placed
        placed = whole
    return np.ascontiguousarray(placed.transpose(2, 0, 1)[None])


def normalise(picture: NDArray[Any]) -> NDArray[np.float32]:
    """[row, column, 3] in 0..255 to zero mean and unit deviation over ImageNet."""
    return (picture.astype(np.float32) - MEAN) / STD


def nearest(picture: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Nearest resize as the network was trained with: the source index is rounded down, so it looks half a pixel to
    the upper left."""
    rows, columns = (_nearest(source, target) for source, target in zip(picture.shape, shape, strict=False))
    return picture[rows[:, None], columns[None, :]]


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    return np.minimum(np.floor(np.arange(target) * (1.0 / (target / source))), source - 1).astype(np.intp)


def bilinear(target: int, source: int) -> NDArray[np.float64]:
    """Matrix [target, source] of bilinear resampling between pixel centres, edges repeated."""
    place = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, None)
    low = np.minimum(np.floor(place).astype(np.intp), source - 1)
    share = place - low
    matrix = np.zeros((target, source))
    matrix[np.arange(target), low] += 1 - share
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += share
    return matrix


@lru_cache(maxsize=16)
def _chain(low: int, size: int, offset: int, inner: int, target: int) -> NDArray[np.float32]:
    """[target, low]: up to the frame, cut, then to the picture."""
    matrix = bilinear(size, low)[offset : offset + inner]
    if inner != target:
        matrix = bilinear(target, inner) @ matrix
    return matrix.astype(np.float32)


@lru_cache(maxsize=16)
def _coverage(source: int, inner: int, offset: int, size: int, low: int) -> NDArray[np.float32]:
    """[low, source]: which share of each cell each pixel of the picture covers, along one side."""
    cell = size / low
    edges = offset + np.arange(source + 1) * (inner / source)
    cells = np.arange(low)[:, None] * cell
    covered = np.minimum(edges[None, 1:], cells + cell) - np.maximum(edges[None, :-1], cells)
    return (np.clip(covered, 0, None) / cell).astype(np.float32)
