"""Windows of scans and images that a segmenter learns from, drawn and changed by chance as nnU-Net has it (Isensee et
al., Nature Methods 2021): a share of them over a structure; noise, blur, contrast, gamma, rotation, scale, mirroring.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    import torch

#: Voxels of a structure that are remembered as middles of windows.
_MIDDLES = 10_000
Generator = np.random.Generator


@attrs.frozen(eq=False)
class Scan:
    """A prepared scan on the disk, and where its structures are.

    Attributes
    ----------
    image : [channels, z, y, x] float32, memory-mapped.
    labels : [z, y, x] int16, memory-mapped.
    middles : label -> [n, 3] voxels of it.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    middles: dict[int, NDArray[np.int32]]

    @classmethod
    def store(cls, name: str, image: NDArray[np.float32], labels: NDArray[np.int16], stem: Path) -> Scan:
        """Write a prepared scan to ``stem`` + ``.image.npy`` and ``.labels.npy`` and open it."""
        np.save(stem.with_name(stem.name + ".image.npy"), image)
        np.save(stem.with_name(stem.name + ".labels.npy"), labels)
        return cls.open(name, stem)

    @classmethod
    def open(cls, name: str, stem: Path) -> Scan:
        """Open what :meth:`store` wrote."""
        image = np.load(stem.with_name(stem.name + ".image.npy"), mmap_mode="r")
        labels = np.load(stem.with_name(stem.name + ".labels.npy"), mmap_mode="r")
        return cls(name, image, labels, _middles(labels))

    @property
    def structures(self) -> tuple[int, ...]:
        """Labels that it has, ascending."""
        return tuple(self.middles)


def _middles(labels: NDArray[np.int16]) -> dict[int, NDArray[np.int32]]:
    generator = np.random.default_rng(1234)
    flat = np.ravel(labels)
    places = np.flatnonzero(flat > 0)
    # One sort groups the voxels of all structures.
    order = np.argsort(flat[places], kind="stable")
    places = places[order]
    values, starts = np.unique(flat[places], return_index=True)
    found = {}
    for value, start, stop in zip(values.tolist(), starts, np.append(starts, len(places))[1:], strict=True):
        every = places[start:stop]
        own = every if len(every) <= _MIDDLES else np.sort(generator.choice(every, _MIDDLES, replace=False))
        found[value] = np.stack(np.unravel_index(own, labels.shape), axis=1).astype(np.int32)
    return found


@attrs.frozen(eq=False, kw_only=True)
class Windows:
    """Batches of windows; what is in a batch follows from the seed, the epoch and its number alone.

    Attributes
    ----------
    scans : drawn evenly, with replacement.
    patch : (z, y, x) of a window; z is 1 for images. Beyond a scan there is 0, and background.
    batch, batches : windows a batch, batches an epoch.
    foreground : share of windows that lie over a structure of their scan: the last ones of a batch, so that with two
        windows one of them is; a single one is by chance.
    augment : ``"none"``, ``"intensity"`` or ``"full"``.
    mirror : axes along which ``"full"`` mirrors.
    """

    scans: Sequence[Scan]
    patch: tuple[int, int, int]
    batch_size: int
    batches: int
    foreground: float
    augment: str
    mirror: Sequence[int]
    seed: int

    def __len__(self) -> int:
        return self.batches

    def batch(self, epoch: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [n, channels, z, y, x] float32 and labels [n, 1, z, y, x] int64."""
        import torch

        images, labels = [], []
        for place in range(self.batch_size):
            generator = np.random.default_rng([self.seed, epoch, index, place])
            over = place >= round(self.batch_size * (1 - self.foreground))
            if self.batch_size == 1:
                over = bool(generator.random() < self.foreground)
            image, truth = self.window(generator, over)
            images.append(image)
            labels.append(truth)
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)[:, None].astype(np.int64))

    def window(self, generator: Generator, over: bool) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """A window drawn by ``generator``; ``over`` a structure, if its scan has any."""
        scan = self.scans[int(generator.integers(len(self.scans)))]
        middle = _middle(scan, self.patch, generator, over)
        matrix = _turn(generator, flat=self.patch[0] == 1) if self.augment == "full" else None
        # A turned window looks at a wider block.
        reach = self.patch if matrix is None else _reach(self.patch, matrix)
        image, labels = _block(scan, middle, reach)
        if matrix is not None:
            image, labels = _turned(image, labels, matrix, self.patch)
        if self.augment != "none":
            image = intensities(image, generator)
        if self.augment == "full":
            for axis in self.mirror:
                if generator.random() < 0.5:
                    image, labels = np.flip(image, axis + 1), np.flip(labels, axis)
        return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(labels)


def _middle(scan: Scan, patch: Sequence[int], generator: Generator, over: bool) -> NDArray[np.int64]:
    """Voxel in the middle of a window. Without a structure to lie over, windows keep within the scan where they fit."""
    if over and scan.middles:
        places = scan.middles[scan.structures[int(generator.integers(len(scan.structures)))]]
        return places[int(generator.integers(len(places)))].astype(np.int64)
    found = []
    for n, p in zip(scan.labels.shape, patch, strict=True):
        low, high = (0, n - p) if n >= p else (n - p, 0)
        found.append(int(generator.integers(low, high + 1)) + p // 2)
    return np.array(found)


def _block(scan: Scan, middle: NDArray[np.int64], size: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Voxels around ``middle``, kept within the scan along axes that are long enough; zeros beyond."""
    image = np.zeros((len(scan.image), *size), np.float32)
    labels = np.zeros(size, np.int16)
    source, target = [], []
    for m, p, n in zip(middle.tolist(), size, scan.labels.shape, strict=True):
        start = m - p // 2
        start = min(max(start, 0), n - p) if n >= p else min(max(start, n - p), 0)
        low, high = max(0, start), min(n, start + p)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    image[(slice(None), *target)] = scan.image[(slice(None), *source)]
    labels[tuple(target)] = np.maximum(scan.labels[tuple(source)], 0)
    return image, labels


def _turn(generator: Generator, *, flat: bool) -> NDArray[np.float64] | None:
    """Rotation of up to 30 degrees an axis and a scale of 0.7 to 1.4, each with a chance of 0.2; [3, 3] from window to
    scan, ``None`` for no change. ``flat`` windows turn in their plane."""
    matrix = np.eye(3)
    if generator.random() < 0.2:
        for axis in range(1 if flat else 3):
            angle = generator.uniform(-np.pi / 6, np.pi / 6)
            a, b = (d for d in range(3) if d != axis)
            turn = np.eye(3)
            turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            matrix = matrix @ turn
    if generator.random() < 0.2:
        matrix = matrix * (generator.uniform(0.7, 1.0) if generator.random() < 0.5 else generator.uniform(1.0, 1.4))
        if flat:
            matrix[0, 0] = 1
    return None if np.array_equal(matrix, np.eye(3)) else matrix


def _reach(patch: Sequence[int], matrix: NDArray[np.float64]) -> tuple[int, ...]:
    """Sides of the block that the corners of a turned window lie in; a plane stays one."""
    sides = np.abs(matrix) @ np.asarray(patch, np.float64)
    return tuple(int(np.ceil(side)) + 2 * (p > 1) for side, p in zip(sides, patch, strict=True))


def _turned(
    image: NDArray[np.float32], labels: NDArray[np.int16], matrix: NDArray[np.float64], patch: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Linear for the image, the nearest voxel for labels."""
    offset = (np.array(labels.shape) - 1) / 2 - matrix @ ((np.array(patch) - 1) / 2)
    given = {"matrix": matrix, "offset": offset, "output_shape": patch, "mode": "constant", "cval": 0}
    channels = [ndimage.affine_transform(channel, order=1, **given) for channel in image]
    return np.stack(channels), ndimage.affine_transform(labels, order=0, **given)


def intensities(image: NDArray[np.float32], generator: Generator) -> NDArray[np.float32]:
    """Noise, blur, brightness, contrast, a coarser grid and gamma, each by chance, on [channels, z, y, x]."""

    def happens(chance: float) -> bool:
        return bool(generator.random() < chance)

    found = np.array(image, np.float32)
    if happens(0.1):
        found += generator.normal(0, generator.uniform(0, 0.1), found.shape).astype(np.float32)
    if happens(0.2):
        for channel in found:
            if happens(0.5):
                channel[...] = ndimage.gaussian_filter(channel, generator.uniform(0.5, 1))
    if happens(0.15):
        found *= np.float32(generator.uniform(0.75, 1.25))
    if happens(0.15):
        factor = generator.uniform(0.75, 1.25)
        for channel in found:
            low, high, mean = channel.min(), channel.max(), channel.mean()
            np.clip((channel - mean) * factor + mean, low, high, out=channel)
    if happens(0.25):
        for channel in found:
            if happens(0.5):
                channel[...] = _coarse(channel, generator.uniform(0.5, 1))
    if happens(0.1):
        found = -_gamma(-found, generator.uniform(0.7, 1.5))
    if happens(0.3):
        found = _gamma(found, generator.uniform(0.7, 1.5))
    return found


def _coarse(channel: NDArray[np.float32], zoom: float) -> NDArray[Any]:
    """As if scanned on a grid that is coarser by ``zoom``."""
    small = [max(1, round(n * zoom)) for n in channel.shape]
    picked = channel[np.ix_(*(np.minimum(((np.arange(m) + 0.5) * n / m).astype(int), n - 1)
                              for n, m in zip(channel.shape, small, strict=True)))]  # fmt: skip
    factors = [n / m for n, m in zip(channel.shape, small, strict=True)]
    return ndimage.zoom(picked, factors, order=1, mode="nearest", grid_mode=True)


def _gamma(image: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """A power of the values' place in their range; mean and deviation of each channel stay."""
    found = np.empty_like(image)
    for channel, out in zip(image, found, strict=True):
        low, mean, deviation = channel.min(), channel.mean(), channel.std()
        span = float(np.ptp(channel)) + 1e-7
        changed = ((channel - low) / span) ** np.float32(gamma) * span + low
        out[...] = (changed - changed.mean()) / (changed.std() + 1e-8) * deviation + mean
    return found
