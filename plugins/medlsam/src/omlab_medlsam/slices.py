"""Slices of CT for MedSAM, prompts of boxes, and masks back on the slices, by MedLSAM's rules.

Volumes are (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab_medlsam.scans import resampled_labels
from omlab_sdk.segment_anything.frame import bilinear, normalise
from omlab_sdk.segment_anything.predictor import sigmoid

#: Hounsfield units that slices show.
WINDOW = (-500.0, 1000.0)
#: Pixels of the frame that a box is widened by on each side.
MARGIN = 10


def grey_levels(volume: NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest value of a volume within the window: black and white of its slices."""
    low, high = (float(np.clip(v, *WINDOW)) for v in (volume.min(), volume.max()))
    return low, high


def grey(plane: NDArray[Any], levels: tuple[float, float]) -> NDArray[np.int64]:
    """A plane, or a volume, to 0..255, truncated. A raw value of exactly 0 becomes black, as in training."""
    low, high = levels
    span = high - low
    shown = (np.clip(plane.astype(np.float64), *WINDOW) - low) * (255.0 / span if span > 0 else 0.0)
    shown[plane == 0] = 0
    return shown.astype(np.int64)


def framed(plane: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """Grey levels [y, x] resized to [size, size], quadratic splines, smoothed before where it shrinks.

    The same as scikit-image's ``resize`` of order 2 with ``mode="constant"``.
    """
    from scipy import ndimage

    values = plane.astype(np.float64)
    factors = np.array(values.shape) / size
    if (factors > 1).any():
        values = ndimage.gaussian_filter(values, np.maximum(0, (factors - 1) / 2), mode="grid-constant")
    found = ndimage.zoom(values, 1 / factors, order=2, mode="grid-constant", grid_mode=True)
    low, high = float(plane.min()), float(plane.max())
    return np.clip(found, low, high).astype(np.uint8)


def framed_labels(plane: NDArray[Any], size: int) -> NDArray[np.uint8]:
    """A label map [y, x] likewise: each label linearly, the greatest share wins."""
    found = resampled_labels(plane[None], (1.0, *(size / n for n in plane.shape)), (1, size, size))
    return found[0].astype(np.uint8)


def encoder_input(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A framed slice [size, size] to [1, 3, size, size], three equal channels, normalised."""
    channels = normalise(np.repeat(picture[:, :, None], 3, axis=2))
    return np.ascontiguousarray(channels.transpose(2, 0, 1)[None])


def box_in_frame(corners: NDArray[Any], shape: Sequence[int], size: int) -> NDArray[np.float32]:
    """Corners [2, (z, y, x)] of a box in a volume with slices of ``shape`` (y, x) to [x0, y0, x1, y1] in the frame,
    widened; it may reach beyond the frame."""
    scale = size / np.asarray(shape, np.float64)
    (y0, x0), (y1, x1) = np.around(np.asarray(corners, np.float64)[:, 1:] * scale)
    return np.array([x0 - MARGIN, y0 - MARGIN, x1 + MARGIN, y1 + MARGIN], np.float32)


def probabilities(low: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    """Logits [..., low, low] to probabilities [..., rows, columns]: the sigmoid first, then linear."""
    down, across = (bilinear(n, low.shape[-2 + axis]).astype(np.float32) for axis, n in enumerate(shape))
    return np.asarray(down @ sigmoid(low) @ across.T, dtype=np.float32)


def on_slice(low: NDArray[np.float32], size: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Logits [low, low] to probabilities on a slice of ``shape`` (y, x): through the frame of ``size`` to the nearest
    pixel of the frame, rounded down as OpenCV does."""
    rows, columns = (np.minimum((np.arange(n) * (size / n)).astype(np.intp), size - 1) for n in shape)
    # Only the rows and columns that are taken are computed.
    down = bilinear(size, low.shape[0]).astype(np.float32)[rows]
    across = bilinear(size, low.shape[1]).astype(np.float32)[columns]
    return np.asarray(down @ sigmoid(low) @ across.T, dtype=np.float32)


def kept_slices(labels: NDArray[Any], low: int, high: int, least: int) -> list[int]:
    """Slices of low <= z < high with more than ``least`` voxels of a label: those that upstream's evaluation keeps."""
    return [z for z in range(max(0, low), min(high, len(labels))) if np.count_nonzero(labels[z]) > least]
