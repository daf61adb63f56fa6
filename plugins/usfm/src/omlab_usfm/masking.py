"""The two ways in which pre-training degrades an image: blocks of it, and rings of its spectrum."""

from __future__ import annotations

import random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class BlockMask:
    """Masks a share of the cells of a grid.

    Parameters
    ----------
    input_size, mask_patch_size : pixels of the image and of a cell.
    model_patch_size : pixels for which the mask has one element.
    mask_ratio : share of cells that are masked, rounded up.
    colour : ``"mean"`` fills them with the mean of each channel over the whole image; else the image stays.
    """

    def __init__(
        self, input_size: int = 192, mask_patch_size: int = 32, model_patch_size: int = 4, mask_ratio: float = 0.6, *,
        colour: Literal["zero", "mean", "rand"] = "zero",
    ) -> None:  # fmt: skip
        if input_size % mask_patch_size or mask_patch_size % model_patch_size:
            raise ValueError(
                f"{input_size} pixels, cells of {mask_patch_size} and patches of {model_patch_size}: each must be a "
                "multiple of the next"
            )
        self.cells, self.scale = input_size // mask_patch_size, mask_patch_size // model_patch_size
        self.patch, self.colour = model_patch_size, colour
        self.count = int(np.ceil(self.cells**2 * mask_ratio))

    def draw(self, generator: np.random.RandomState | np.random.Generator) -> NDArray[np.int64]:
        """[input_size / model_patch_size] squared; 1 is masked."""
        mask = np.zeros(self.cells**2, np.int64)
        mask[generator.permutation(self.cells**2)[: self.count]] = 1
        mask = mask.reshape(self.cells, self.cells)
        return mask.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def __call__(
        self, image: NDArray[np.floating[Any]], generator: np.random.RandomState | np.random.Generator
    ) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
        """An image [channel, row, column] with its masked cells filled, and the mask."""
        mask = self.draw(generator)
        if self.colour != "mean":
            return image, mask
        whole = mask.repeat(self.patch, axis=0).repeat(self.patch, axis=1).astype(bool)
        means = image.mean(axis=(1, 2), keepdims=True)
        return np.where(whole[None], means, image).astype(image.dtype), mask


class BandStop:
    """Takes rings out of an image's spectrum.

    Parameters
    ----------
    size : side of the image in pixels.
    ratio : share of the rings that are taken out.
    base_width, growth, greatest_growth : width in pixels of the first ring; each next one is wider by the share
        ``growth`` of its width, by at most ``greatest_growth`` pixels.
    protected : radius around the centre that stays; equal to ``base_width``, or else the first group amplifies a ring.

    Attributes
    ----------
    rings : [group, size, size] float32 factors of the centred spectrum, one group a ring.
    """

    def __init__(
        self, size: int, *, ratio: float, base_width: int, growth: float, greatest_growth: int, protected: int
    ) -> None:
        if min(int(base_width * growth), greatest_growth) < 1:
            raise ValueError(
                f"rings of {base_width} pixels that grow by {growth} never get wider; both must be greater"
            )
        self.ratio = ratio
        rows, columns = np.mgrid[:size, :size] - size // 2
        distance = np.sqrt(rows**2 + columns**2)
        width, radius = base_width, protected
        stops = []
        while radius <= size // 2:
            stops.append(np.where((distance >= radius - width) & (distance <= radius), 0.0, 1.0))
            radius = width
            width += min(int(width * growth), greatest_growth)
        discs = np.stack(stops) if stops else np.ones((1, size, size))
        self.rings = (discs[1:] - discs[:-1] + 1).astype(np.float32)

    def mask(self, order: list[int] | None = None) -> NDArray[np.float32]:
        """[size, size]: the first ``ratio`` of the groups in ``order``, random without one, taken together."""
        if order is None:
            order = list(range(len(self.rings)))
            random.shuffle(order)
        chosen = order[: int(self.ratio * len(self.rings))]
        return self.rings[chosen].prod(axis=0).astype(np.float32)

    def __call__(
        self, image: NDArray[np.floating[Any]], order: list[int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """An image [channel, row, column] without the rings, as magnitudes, and the mask [1, row, column].

        Magnitudes have no sign: give an image in 0..1, not a normalised one.
        """
        mask = self.mask(order)
        spectrum = np.fft.fftshift(np.fft.fft2(image, axes=(1, 2)), axes=(1, 2)) * mask
        filtered = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2)), axes=(1, 2)))
        return filtered.astype(np.float32), mask[None]
