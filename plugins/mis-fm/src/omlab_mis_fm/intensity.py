"""Intensities as PyMIC normalises them, each channel on its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def mean_std(
    volume: Array, channels: Sequence[int] | None = None, *, above: float | None = None,
    random: np.random.RandomState | None = None,
) -> Array:  # fmt: skip
    """Minus the mean, over the standard deviation plus 1e-5, of [channels, D, H, W].

    Parameters
    ----------
    channels : that are normalised; all without.
    above : only voxels above this count.
    random : with ``above``, what does not count becomes standard normal noise drawn from it; without, it is normalised
        like the rest.
    """
    found = np.array(volume, np.float32)
    for channel in range(len(found)) if channels is None else channels:
        values = found[channel]
        counted = values if above is None else values[values > above]
        if not counted.size:
            counted = values
        result = (values - counted.mean()) / (counted.std() + 1e-5)
        if above is not None and random is not None:
            outside = values <= above
            result[outside] = random.normal(0, 1, int(outside.sum()))
        found[channel] = result
    return found


def min_max(volume: Array, bounds: tuple[float, float], channels: Sequence[int] | None = None) -> Array:
    """Clipped to ``bounds``, which become -1 and 1."""
    low, high = bounds
    found = np.array(volume, np.float32)
    for channel in range(len(found)) if channels is None else channels:
        found[channel] = 2 * (np.clip(found[channel], low, high) - low) / (high - low) - 1
    return found
