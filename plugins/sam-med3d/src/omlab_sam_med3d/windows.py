"""Cubes around the central one, for what does not fit into it, as upstream's whole-volume script lays them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import attrs

from omlab_sam_med3d.grid import Begin

#: How far windows lie off the central one, in voxels, and how wide the part is that each adds.
STRIDE = 32


@attrs.frozen
class Window:
    """One cube.

    Attributes
    ----------
    begin : first voxel on the grid; may lie outside of it.
    padding : voxels of the cube outside of the grid, (before, after) an axis.
    cropping : voxels of the padded grid outside of the cube, (before, after) an axis.
    volume : part of the grid that is written, (first, one past the last) an axis; empty where the last is not beyond.
    cube : the part of the cube that is written there.
    """

    begin: Begin
    padding: tuple[tuple[int, int], ...]
    cropping: tuple[tuple[int, int], ...]
    volume: tuple[tuple[int, int], ...]
    cube: tuple[tuple[int, int], ...]

    @property
    def empty(self) -> bool:
        """Is nothing of it written?"""
        return any(b <= a for a, b in self.cube)


def windows_of(
    shape: Sequence[int], begin: Begin, size: Sequence[int], *, around: bool = True, stride: int = STRIDE
) -> Iterator[Window]:
    """Windows of a grid of ``shape`` in the order in which they are written, the central one last, so that it counts
    wherever it is.

    Parameters
    ----------
    begin : of the central window.
    around : the 26 windows around it, too.
    """
    for offsets in product((-stride, stride, 0), repeat=3) if around else [(0, 0, 0)]:
        first = tuple(b + o for b, o in zip(begin, offsets, strict=True))
        padding, cropping, volume, cube = [], [], [], []
        for b, offset, n, s in zip(first, offsets, shape, size, strict=True):
            before, after = max(0, -b), max(0, b + s - n)
            left = max(0, b)
            clip = {0: (0, 0)}.get(offset) or ((0, stride - s) if offset < 0 else (s - stride, 0))
            padding.append((before, after))
            cropping.append((left, max(0, n - b - s)))
            cube.append((before + clip[0], s - after + clip[1]))
            volume.append((left + clip[0], left + s - before - after + clip[1]))
        yield Window(
            (first[0], first[1], first[2]), tuple(padding), tuple(cropping), tuple(volume), tuple(cube)
        )  # fmt: skip
