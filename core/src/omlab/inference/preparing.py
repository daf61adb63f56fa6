"""Cutting a scan to what is in it, and normalising it, by the rules of nnU-Net (1.7.1, and 2.2 where it differs)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Scheme(StrEnum):
    """How intensities are normalised."""

    #: Subtract the mean, divide by the standard deviation; upstream takes every name that it does not know for this.
    ZSCORE = "nonCT"
    #: Clip to the percentiles of the training data, subtract their mean, divide by their standard deviation.
    CT = "CT"
    #: Clip likewise; mean and standard deviation are those of this scan's voxels strictly within the percentiles.
    CT2 = "CT2"
    NONE = "noNorm"

    @classmethod
    def of(cls, name: str) -> Scheme:
        """By upstream's name."""
        return cls(name) if name in set(cls) else cls.ZSCORE


def nonzero_box(volume: NDArray[Any]) -> tuple[slice, ...] | None:
    """The smallest box with every voxel that is not exactly 0, of [a, b, c] or of any channel of [channels, a, b, c];
    ``None`` if all are 0."""
    channels = volume if volume.ndim == 4 else volume[None]
    box = []
    for axis in range(3):
        there = np.zeros(channels.shape[1 + axis], bool)
        for channel in channels:
            # any() of a whole volume makes a copy as booleans; a plane at a time it does not.
            there |= np.array([bool(np.take(channel, n, axis=axis).any()) for n in range(channel.shape[axis])])
        found = np.flatnonzero(there)
        if not len(found):
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
        channels = channels[(slice(None),) + (slice(None),) * axis + (box[-1],)]
    return tuple(box)


def normalise(
    volume: NDArray[np.float32],
    scheme: Scheme,
    properties: Mapping[str, float] | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
    version: int = 1,
) -> NDArray[np.float32]:
    """Normalised intensities of one channel, in the memory of ``volume`` where that can be written.

    Parameters
    ----------
    volume : [a, b, c] float32.
    properties : of the training data: ``percentile_00_5``, ``percentile_99_5``, ``mean`` and ``sd`` (``std`` in
        version 2); needed by :attr:`Scheme.CT` and, for the percentiles, :attr:`Scheme.CT2`.
    mask : voxels that count. The z-score takes its figures from them; voxels outside become 0, but stay as they were
        in the z-score of version 2.
    version : of nnU-Net. 1 adds 1e-8 to the deviation of a z-score and nothing else; 2 divides by at least 1e-8.

    Raises
    ------
    KeyError
        A property is missing.
    """
    values = volume if volume.flags.writeable else volume.copy()
    given = dict(properties or {})
    if scheme is Scheme.NONE:
        return values
    if scheme is Scheme.ZSCORE:
        inside = values if mask is None else values[mask]
        mean, deviation = inside.mean(), inside.std()
        divisor = deviation + np.float32(1e-8) if version == 1 else np.maximum(deviation, np.float32(1e-8))
        if mask is None:
            values -= mean
            values /= divisor
        else:
            values[mask] = (inside - mean) / divisor
            if version == 1:
                values[~mask] = 0
        return values
    low, high = given["percentile_00_5"], given["percentile_99_5"]
    if scheme is Scheme.CT2:
        inside = values[(values > low) & (values < high)]
        mean, divisor = inside.mean(), inside.std()
    else:
        mean, divisor = given["mean"], given["sd" if "sd" in given else "std"]
        divisor = divisor if version == 1 else max(divisor, 1e-8)
    np.clip(values, low, high, out=values)
    values -= np.float32(mean)
    values /= np.float32(divisor)
    if mask is not None and version == 1:
        values[~mask] = 0
    return values


def foreground(volume: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels that are not exactly 0 in some channel of [channels, a, b, c], and the holes that they enclose.

    Raises
    ------
    omlab.errors.MissingDependency
        ``fill_voids`` is not installed.
    """
    from omlab.errors import require

    library = require("fill_voids", needed_for="normalising inside the body alone", install="fill_voids")
    there = np.zeros(volume.shape[1:], bool)
    for channel in volume:
        there |= channel != 0
    return np.asarray(library.fill(there), bool)
