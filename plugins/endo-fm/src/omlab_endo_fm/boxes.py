"""From the raw outputs of the detection network to boxes, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def sigmoid(x: NDArray[np.floating]) -> Array:
    """The logistic function, safe for large numbers."""
    return (0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))).astype(np.float32)


def corners(distances: Array, stride: int) -> Array:
    """[4, row, column] of (left, top, right, bottom) distances to [place, 4] corners (x0, y0, x1, y1), row by row."""
    _, rows, columns = distances.shape
    x = (np.arange(columns, dtype=np.float32) * stride + stride // 2)[None]
    y = (np.arange(rows, dtype=np.float32) * stride + stride // 2)[:, None]
    left, top, right, bottom = distances
    return np.stack([x - left, y - top, x + right, y + bottom], axis=-1).reshape(-1, 4)


def of_level(
    cls: Array, centerness: Array, pre_box: Array, stft_cls: Array, stft_box: Array, *, threshold: float, top: int
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Candidates of one level: boxes [found, 4], scores [found] and classes [found] from 0, best first.

    Parameters
    ----------
    cls, stft_cls : logits [class, row, column].
    centerness : logit [1, row, column].
    pre_box : corners [place, 4] in pixels.
    stft_box : corrections [4, row, column].
    threshold : of the first stage's score.
    top : how many are kept.
    """
    classes = cls.shape[0]
    first = np.sqrt(sigmoid(cls.reshape(classes, -1).T) * sigmoid(centerness.reshape(-1, 1)))
    places, kinds = np.nonzero(first > threshold)
    scores = first[places, kinds] * sigmoid(stft_cls.reshape(classes, -1).T[places, kinds])
    order = np.argsort(-scores, kind="stable")[:top]
    places, kinds, scores = places[order], kinds[order], scores[order]
    before = pre_box[places]
    sides = before[:, 2:] - before[:, :2]
    boxes = before + stft_box.reshape(4, -1).T[places] * np.float32(0.5) * np.tile(sides, 2)
    return boxes, np.sqrt(scores), kinds


def suppress(boxes: Array, scores: Array, overlap: float) -> NDArray[np.int64]:
    """Indices of the boxes that no better one overlaps by more than ``overlap`` (intersection over union), best
    first."""
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order].astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = np.ones(len(boxes), bool)
    for number in range(len(boxes)):
        if not alive[number]:
            continue
        rest = np.flatnonzero(alive[number + 1 :]) + number + 1
        low, high = np.maximum(boxes[rest, :2], boxes[number, :2]), np.minimum(boxes[rest, 2:], boxes[number, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = shared / (areas[rest] + areas[number] - shared)
        alive[rest[ratio > overlap]] = False
    return order[alive]


def decode(
    levels: Sequence[dict[str, Array]], size: tuple[int, int], *, threshold: float = 0.05, top: int = 1000,
    overlap: float = 0.6, most: int = 300,
) -> tuple[Array, Array, NDArray[np.int64]]:  # fmt: skip
    """Boxes [found, 4] (x0, y0, x1, y1) in pixels, scores [found] and classes [found] from 0, best first.

    Parameters
    ----------
    levels : arguments of :func:`of_level` of each level.
    size : (width, height) of the frame that the network saw; boxes end at its outermost pixels.
    threshold, top : of :func:`of_level`.
    overlap : of :func:`suppress`, class by class.
    most : how many boxes are kept.
    """
    found = [of_level(**level, threshold=threshold, top=top) for level in levels]
    boxes, scores, kinds = (np.concatenate([part[i] for part in found]) for i in range(3))
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    kept = [
        members[suppress(boxes[members], scores[members], overlap)]
        for members in (np.flatnonzero(kinds == kind) for kind in np.unique(kinds))
    ]
    chosen = np.concatenate(kept) if kept else np.empty(0, np.int64)
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:most]
    boxes = np.clip(boxes[chosen], 0, np.array([size[0] - 1, size[1] - 1] * 2, np.float32))
    sound = ((boxes[:, 2:] - boxes[:, :2] + 1) >= 0).all(axis=1)
    return boxes[sound], scores[chosen][sound], kinds[chosen][sound].astype(np.int64)
