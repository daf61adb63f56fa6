"""Prompts simulated from reference masks, as SAM-Med2D was trained and tested with.

Masks are [row, column] in the frame of the network; places are (x, y) in that frame. Randomness comes from NumPy's
legacy generator, drawn in upstream's order, so that a seed gives the same prompts here as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab_sdk.segment_anything.frame import Frame, nearest

#: Label of points drawn where prediction and reference agree everywhere.
NOTHING_WRONG = -1


def mask_in_frame(mask: NDArray[Any], frame: Frame, name: str = "mask") -> NDArray[np.uint8]:
    """A reference mask of the picture as 0 and 1 in the frame.

    Raises
    ------
    InputError
        It has values besides 0 and 1, or 0 and 255, or another size than the picture.
    """
    if mask.shape != frame.shape:
        raise InputError(
            f"{name}: has {mask.shape[0]} x {mask.shape[1]} pixels, its picture has {frame.shape[0]} x {frame.shape[1]}"
        )
    values = np.unique(np.asarray(mask))
    if set(values.tolist()) not in ({0}, {1}, {255}, {0, 1}, {0, 255}):
        raise InputError(f"{name}: has the values {values[:6].tolist()}, a mask of 0 and 1 or of 0 and 255 is expected")
    placed = (np.asarray(mask) > 0).astype(np.uint8)
    if frame.inner != frame.shape:
        placed = nearest(placed, frame.inner)
    whole = np.zeros((frame.size, frame.size), np.uint8)
    top, left = frame.offset
    whole[top : top + placed.shape[0], left : left + placed.shape[1]] = placed
    return whole


def box_of(mask: NDArray[Any], random: np.random.RandomState | None = None, most: int = 0) -> NDArray[np.int64]:
    """Box (x0, y0, x1, y1) around the largest part of ``mask``; x1 and y1 are one past it.

    Parameters
    ----------
    most : greatest shift in pixels (5 in training, 0 in testing); the box moves and keeps its size.

    Raises
    ------
    InputError
        The mask is empty.
    """
    from scipy import ndimage

    parts, count = ndimage.label(mask, np.ones((3, 3), int))
    if not count:
        raise InputError("a box was asked of an empty mask", remedy="Leave empty masks out")
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    rows, columns = ndimage.find_objects((parts == largest).astype(np.uint8))[0]
    box = np.array([columns.start, rows.start, columns.stop, rows.stop], np.int64)
    shift = min(most, int(5 * 0.1 * min(box[2] - box[0], box[3] - box[1])))
    if shift > 0 and random is not None:
        dx, dy = random.randint(-shift, shift), random.randint(-shift, shift)
        box += np.array([dx, dy, dx, dy])
    return box


def first_points(
    mask: NDArray[Any], random: np.random.RandomState, count: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places [count, 2] and labels [count]: one in the foreground (in the background of an empty mask); of several,
    half in the foreground and the rest in the background, drawn with replacement."""
    inside, outside = np.argwhere(mask > 0), np.argwhere(mask <= 0)
    if count == 1:
        pool, label = (inside, 1) if len(inside) else (outside, 0)
        return pool[random.randint(0, len(pool), size=1)][:, ::-1], np.array([label])
    chosen, labels = [], []
    for pool, label, wanted in ((inside, 1, count // 2), (outside, 0, count - count // 2)):
        if len(pool):
            chosen.append(pool[random.choice(len(pool), size=wanted)])
            labels += [label] * wanted
    order = random.permutation(len(labels))
    return np.concatenate(chosen)[order][:, ::-1], np.array(labels)[order]


def correction_points(
    prediction: NDArray[np.bool_], mask: NDArray[Any], random: np.random.RandomState, count: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places and labels where prediction and reference differ: 1 where something was missed, 0 where too much was
    found. Without any difference the places mean nothing and the labels are :data:`NOTHING_WRONG`."""
    wrong = np.argwhere(prediction != (mask > 0))
    if not len(wrong):
        return random.randint(0, mask.shape[0], size=(count, 2)), np.full(count, NOTHING_WRONG)
    places = wrong[random.choice(len(wrong), size=count)]
    return places[:, ::-1], (mask[places[:, 0], places[:, 1]] > 0).astype(np.int64)
