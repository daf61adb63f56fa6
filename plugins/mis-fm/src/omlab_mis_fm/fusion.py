"""Volume Fusion, the pre-training task: find which blocks of a scan were mixed with another part of it, and how much.

All draws come from one :class:`random.Random`, in upstream's order, so a seed gives upstream's volumes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
#: Scales of a crop, least and greatest.
SCALES = (0.7, 1.5)
#: What a scan is clipped to before, in Hounsfield units; then it is scaled to -1..1.
CT_RANGE = (-1000.0, 1000.0)
#: Share of pairs of patches that are inverted.
INVERTED = 0.25


@attrs.frozen(eq=False)
class Fused:
    """One training example.

    Attributes
    ----------
    image : [1, D, H, W], patch 1 where the label is greatest, patch 2 where it is 0.
    label : [1, D, H, W] integers from 0 to classes - 1.
    patches : both parts.
    """

    image: Array
    label: NDArray[np.uint8]
    patches: tuple[Array, Array]


@attrs.frozen(kw_only=True)
class VolumeFusion:
    """How examples are made; the defaults are those of upstream's demonstration.

    Attributes
    ----------
    size : (D, H, W) of an example.
    classes : of the label map; blocks have 1 to classes - 1.
    ratio : share of the grid's blocks that are mixed.
    block_min, block_max : sides of a block.
    mode : what the two patches are augmented with: 0 nothing, 1 intensities, 2 flips and scales, 3 both.
    """

    size: tuple[int, int, int] = (64, 128, 128)
    classes: int = 5
    ratio: float = 0.7
    block_min: tuple[int, int, int] = (5, 8, 8)
    block_max: tuple[int, int, int] = (20, 32, 32)
    mode: int = 3

    def make(self, volume: Array, draw: random.Random) -> Fused:
        """An example from a sub-volume [1, D, H, W] that is already clipped and scaled."""
        foreground, background = self.patches(volume, draw)
        label = self.labels(draw)[None]
        return Fused(fuse(foreground, background, label, self.classes), label, (foreground, background))

    def patches(self, volume: Array, draw: random.Random) -> tuple[Array, Array]:
        """Two crops, flipped and changed in intensity as the mode says."""
        scales = SCALES if self.mode > 1 else (1.0, 1.0)
        first, second = (random_crop(volume, self.size, scales, draw) for _ in range(2))
        if self.mode > 1:
            first, second = flipped(first, draw), flipped(second, draw)
        if self.mode in (1, 3):
            first, second = random_intensity(first, draw), random_intensity(second, draw)
            if draw.random() < INVERTED:
                first, second = 1 - first, 1 - second
        return first, second

    def labels(self, draw: random.Random) -> NDArray[np.uint8]:
        """A grid of blocks, some of which have a class; [D, H, W]."""
        sides = [draw.randint(a, b) for a, b in zip(self.block_min, self.block_max, strict=True)]
        offsets = [draw.randint(0, n % side) for n, side in zip(self.size, sides, strict=True)]
        counts = [n // side for n, side in zip(self.size, sides, strict=True)]
        total = counts[0] * counts[1] * counts[2]
        chosen = int(total * self.ratio)
        flags = [1] * chosen + [0] * (total - chosen)
        draw.shuffle(flags)
        label = np.zeros(self.size, np.uint8)
        for number, place in enumerate(np.ndindex(*counts)):
            if flags[number]:
                block = tuple(
                    slice(o + k * side, o + (k + 1) * side) for o, k, side in zip(offsets, place, sides, strict=True)
                )
                label[block] = draw.randint(1, self.classes - 1)
        return label


def clip_ct(volume: Array) -> Array:
    """Hounsfield units clipped and scaled to -1..1, as the task expects them."""
    low, high = CT_RANGE
    return np.asarray((np.clip(volume, low, high) - low) / (high - low) * 2 - 1, np.float32)


def fuse(foreground: Array, background: Array, label: NDArray[np.integer], classes: int) -> Array:
    """alpha x foreground + (1 - alpha) x background, alpha being the label over the greatest label."""
    alpha = label / (classes - 1)
    return alpha * foreground + (1 - alpha) * background


def random_crop(volume: Array, size: Sequence[int], scales: tuple[float, float], draw: random.Random) -> Array:
    """A part of [1, D, H, W] at a scale drawn for each axis, brought to ``size`` linearly."""
    from scipy import ndimage

    low, high = scales
    drawn = [low + (high - low) * draw.random() for _ in size]
    shape = [min(int(n * scale), whole) for n, scale, whole in zip(size, drawn, volume.shape[1:], strict=True)]
    starts = [draw.randint(0, whole - n) for n, whole in zip(shape, volume.shape[1:], strict=True)]
    part = volume[(slice(None), *(slice(s, s + n) for s, n in zip(starts, shape, strict=True)))]
    return np.asarray(ndimage.zoom(part[0], [n / m for n, m in zip(size, shape, strict=True)], order=1))[None]


def flipped(patch: Array, draw: random.Random) -> Array:
    """W, H and D, each flipped or not."""
    for axis in (3, 2, 1):
        if draw.random() > 0.5:
            patch = np.flip(patch, axis)
    return patch


def random_intensity(patch: Array, draw: random.Random) -> Array:
    """Contrast and gamma, drawn."""
    p0, p1 = draw.uniform(0.1, 2.0), draw.uniform(98, 99.9)
    stretched = stretch(patch, p0, p1)
    return gamma(stretched, draw.random() * 0.8 + 0.7)


def stretch(patch: Array, p0: float, p1: float) -> Array:
    """Values between two percentiles to 0.1..0.9, those below and above to what is left of 0..1."""
    v0, v1 = np.percentile(patch, p0), np.percentile(patch, p1)
    low, high = patch.min(), patch.max()
    if not v1 > v0:  # a constant patch, say of air, has nothing to stretch
        return patch
    found = (patch - v0) / (v1 - v0) * 0.8 + 0.1
    if v0 > low:
        found = np.where(patch < v0, (patch - low) * 0.1 / (v0 - low), found)
    return np.where(patch > v1, 0.9 + 0.1 * (patch - v1) / (high - v1), found) if high > v1 else found


def gamma(patch: Array, exponent: float) -> Array:
    """Raised to a power within its own range."""
    low, high = patch.min(), patch.max()
    if not high > low:
        return patch
    return ((patch - low) / (high - low)) ** exponent * (high - low) + low
