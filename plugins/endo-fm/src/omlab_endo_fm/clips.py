"""Which frames of a video make a clip, and what the networks see of a frame. NumPy alone, all constants upstream's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

MEAN, STD = 0.45, 0.225


@attrs.frozen(kw_only=True)
class Sampling:
    """How clips are taken.

    Attributes
    ----------
    frames : of a clip.
    rate : source frames from one to the next, in a video of ``target_fps``.
    target_fps : frames a second that ``rate`` is meant for; clips of other videos last as long.
    """

    frames: int = 8
    rate: int = 32
    target_fps: float = 30.0

    def length(self, fps: float) -> float:
        """Source frames that a clip spans."""
        return self.rate * self.frames / self.target_fps * fps


def window(count: int, length: float, *, view: int = 0, views: int = 1, ticks: float | None = None) -> tuple[int, int]:
    """First and last frame that are decoded for view ``view`` of ``views``, evenly spread over a video.

    Parameters
    ----------
    count : frames of the video.
    length : source frames that a clip spans (:meth:`Sampling.length`).
    ticks : steps of the file's clock from one frame to the next. The ends of the window are cut to whole steps, and
        frames from the one to the other, both included, are taken.
    """
    start = max(count - length, 0.0) * view / views
    end = start + length - 1
    if ticks and ticks > 0:
        start, end = int(start * ticks) / ticks, int(end * ticks) / ticks
    last = min(count - 1, math.floor(end + 1e-9))
    return min(math.ceil(start - 1e-9), last), last


def spread(start: float, end: float, frames: int, available: int) -> NDArray[np.int64]:
    """Frame indices: ``frames`` of them evenly from ``start`` to ``end``, kept within 0 to ``available`` - 1, cut to
    whole numbers. float32 from both ends, as the original, so that indices near a whole number fall the same way."""
    steps = np.arange(frames, dtype=np.float32)
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(max(1, frames - 1))
    values = np.where(steps < frames // 2, first + step * steps, last - step * (frames - 1 - steps))
    if frames == 1:
        values = np.array([first])
    return np.clip(values, 0, available - 1).astype(np.int64)


def clip(
    count: int, fps: float, sampling: Sampling, *, view: int = 0, views: int = 1, ticks: float | None = None
) -> NDArray[np.int64]:
    """Frames of the video for one clip, [frames]. One that is shorter than the clip repeats its last frame.

    Without ``ticks``, that is for a file that does not tell its duration, indices are counted from the start of the
    video; else from the first frame of the :func:`window`.
    """
    length = sampling.length(fps)
    if ticks is None:
        start = max(count - length, 0.0) * view / views
        return spread(start, start + length - 1, sampling.frames, count)
    first, last = window(count, length, view=view, views=views, ticks=ticks)
    return first + spread(0.0, length - 1, sampling.frames, last - first + 1)


def consecutive(count: int, fps: float, sampling: Sampling) -> list[NDArray[np.int64]]:
    """Frames of the clips that cover the whole video, one after the other; the last repeats the last frame."""
    length = sampling.length(fps)
    step = max(1.0, length)
    starts = [math.floor(number * step + 1e-9) for number in range(max(1, math.ceil(count / step - 1e-9)))]
    return [first + spread(0.0, length - 1, sampling.frames, count - first) for first in starts if first < count]


def _taps(
    size: int, out: int, start: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lower neighbour, upper neighbour and weight of the upper one for ``length`` outputs from ``start`` of ``out``."""
    scale = np.float32(size) / np.float32(out)
    place = (np.arange(start, start + length, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    place = np.maximum(place, np.float32(0))
    low = place.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), place - low


def prepare(
    frames: NDArray[np.uint8], *, size: int, crop: int, index: int, mean: float = MEAN, std: float = STD
) -> NDArray[np.float32]:
    """Frames [frame, row, column, RGB] to what the encoder takes, [RGB, frame, crop, crop] float32.

    The shorter side becomes ``size`` pixels, bilinear without smoothing, and a square is cut out.

    Parameters
    ----------
    index : 0 left, 1 centre, 2 right; top, centre, bottom where the frame is higher than wide.
    """
    count, rows, columns, channels = frames.shape
    high, wide = resized(rows, columns, size)
    top, left = _corner(high, crop), _corner(wide, crop)
    if wide >= high:
        left = {0: 0, 1: left, 2: wide - crop}[index]
    else:
        top = {0: 0, 1: top, 2: high - crop}[index]
    if (high, wide) == (rows, columns):
        values = frames[:, top : top + crop, left : left + crop].astype(np.float32)
    else:
        low, up, share = _taps(rows, high, top, crop)
        west, east, part = _taps(columns, wide, left, crop)
        values = np.empty((count, crop, crop, channels), np.float32)
        # A frame at a time, and of it only the pixels that reach the square.
        for number, frame in enumerate(frames):
            upper, lower = (frame[picked].astype(np.float32) for picked in (low, up))
            lines = upper + share[:, None, None] * (lower - upper)
            near = lines[:, west]
            values[number] = near + part[None, :, None] * (lines[:, east] - near)
    values /= np.float32(255)
    values -= np.float32(mean)
    values /= np.float32(std)
    return np.ascontiguousarray(values.transpose(3, 0, 1, 2))


def resized(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Rows and columns after the shorter side became ``size`` pixels."""
    if min(rows, columns) == size:
        return rows, columns
    if columns < rows:
        return math.floor(rows / columns * size), size
    return size, math.floor(columns / rows * size)


def _corner(size: int, crop: int) -> int:
    return math.ceil((size - crop) / 2)


def rescaled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame with its least value at 0 and its greatest at 255, cut to whole numbers; a flat one becomes 0."""
    low, high = int(image.min()), int(image.max())
    if (low, high) == (0, 255):
        return image
    if high == low:
        return np.zeros_like(image)
    table = (np.arange(256, dtype=np.float64) - low) / (high - low) * 255
    return np.clip(table, 0, 255).astype(np.uint8)[image]


def segmentation_input(image: NDArray[np.uint8], size: int = 224) -> NDArray[np.float32]:
    """A frame [row, column, RGB] to what the segmentation network takes, [RGB, size, size] float32 in -1..1: its least
    and greatest value stretched before and after the resize (Pillow's bilinear; the aspect ratio is not kept)."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(rescaled(image))
    if picture.size != (size, size):
        picture = picture.resize((size, size), Pillow.Resampling.BILINEAR)
    values = np.asarray(picture, np.float32)
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low if high > low else 1.0)
    return np.ascontiguousarray(((values - 0.5) / 0.5).transpose(2, 0, 1), dtype=np.float32)


#: Of blue, green and red, in 0..255.
DETECTION_MEAN = np.array([102.9801, 115.9465, 122.7717], np.float32)


def detection_input(image: NDArray[np.uint8], size: int = 640) -> NDArray[np.float32]:
    """A frame [row, column, RGB] to what the detection network takes, [BGR, size, size] float32 in 0..255 minus the
    means (Pillow's bilinear; the aspect ratio is not kept)."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(image)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Pillow.Resampling.BILINEAR)
    values = np.asarray(picture)[:, :, ::-1].astype(np.float32) - DETECTION_MEAN
    return np.ascontiguousarray(values.transpose(2, 0, 1))


#: How many frames before and after the key frame references come from.
REACH = 9


def references(key: int, count: int, each_side: int, seed: int) -> NDArray[np.int64]:
    """Frames that help to look at frame ``key``: ``each_side`` of the nine before and as many of the nine after, drawn
    without replacement; beyond an end of the video its first or last frame stands.

    Upstream draws from a global generator, so its scores differ from run to run; here the draw depends on ``seed``
    and ``key`` alone.
    """
    generator = np.random.default_rng((seed, key))
    sides: Sequence[NDArray[np.int64]] = (np.arange(key - REACH, key), np.arange(key + 1, key + REACH + 1))
    drawn = [np.sort(generator.choice(side, size=each_side, replace=False)) for side in sides]
    return np.clip(np.concatenate(drawn), 0, count - 1)
