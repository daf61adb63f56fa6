"""What nnU-Net calls a plan: grid, patch and normalisation that a network was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from omlab.inference.preparing import Scheme

#: Blocks a stage and channels of the published sizes.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"depth": (1, 1, 1, 1, 1, 1), "dims": (16, 32, 64, 128, 256, 256)},
    "base": {"depth": (1, 1, 1, 1, 1, 1), "dims": (32, 64, 128, 256, 512, 512)},
    "large": {"depth": (2, 2, 2, 2, 2, 2), "dims": (64, 128, 256, 512, 1024, 1024)},
    "huge": {"depth": (3, 3, 3, 3, 3, 3), "dims": (96, 192, 384, 768, 1536, 1536)},
}
#: Strides of the released plan: sides of a patch must be divisible by (16, 16, 32).
STRIDES = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 2))
#: Every so many voxels along each axis, logits are given for the comparison of engines.
SAMPLE = 4


def _whole(value: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in value)


def _rows(value: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(_whole(row) for row in value)


def _floats(value: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(n) for n in value)


@attrs.frozen
class Plan:
    """A plan; the defaults are those of the released weights.

    Attributes
    ----------
    spacing_mm, patch : along the axes that the network sees.
    strides : five, of the encoder's stages after the first.
    orientation, transpose : the network sees z, y, x of a scan that was turned to these axis codes, in this order of
        axes. Without codes the scan stays as its file has it, which is nnU-Net's way.
    mirror : axes that the network may see mirrored.
    largest : groups of labels of each of which only the largest component stays, by the rule of
        :func:`omlab.inference.cleaning.keep_largest`.
    scheme, use_mask, intensities : normalisation (:func:`omlab.inference.preparing.normalise`). The released plan
        says that the modality is no CT and so takes the z-score of the whole scan, though all of it is CT.
    version : of nnU-Net whose order of steps and sums is followed, 1 or 2.
    """

    dims: tuple[int, ...] = attrs.field(converter=_whole)
    depth: tuple[int, ...] = attrs.field(converter=_whole)
    spacing_mm: tuple[float, ...] = attrs.field(default=(1.5, 1.5, 1.5), converter=_floats)
    patch: tuple[int, ...] = attrs.field(default=(128, 128, 128), converter=_whole)
    strides: tuple[tuple[int, ...], ...] = attrs.field(default=STRIDES, converter=_rows)
    scheme: Scheme = attrs.field(default=Scheme.ZSCORE, converter=Scheme.of)
    use_mask: bool = False
    intensities: Mapping[str, float] = attrs.field(factory=dict)
    version: int = 1
    orientation: str = "RAS"
    transpose: tuple[int, ...] = attrs.field(default=(0, 1, 2), converter=_whole)
    mirror: tuple[int, ...] = attrs.field(default=(0, 1, 2), converter=_whole)
    largest: tuple[tuple[int, ...], ...] = attrs.field(default=(), converter=_rows)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Plan:
        """From a variant's ``config``: the name of a size, or everything."""
        given = dict(config)
        size = given.pop("size", None)
        return cls(**(SIZES[size] if size else {}), **given)
