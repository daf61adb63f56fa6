"""Surface elements of a binary mask: where its surface lies and how large each piece is.

A surfel sits at a corner between 2 x 2 x 2 voxels (2 x 2 pixels) that are neither all inside nor all outside. Which of
them are inside is its code; the code decides the area (length) of the surface that passes there. After Nikolov et
al. 2018, whose reference implementation weights surface elements the same way; the table is rebuilt here from 13
representatives, the 48 symmetries of the cube, and the exchange of inside and outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

#: Code -> normals of its triangles in eighths of a voxel, absolute components in the order of the axes.
_REPRESENTATIVES: dict[int, list[tuple[int, int, int]]] = {
    1: [(1, 1, 1)],
    3: [(2, 2, 0)] * 2,
    6: [(1, 1, 1)] * 2,
    7: [(1, 1, 1), (2, 2, 2), (4, 0, 0)],
    15: [(4, 0, 0)] * 2,
    22: [(1, 1, 1)] * 3,
    23: [(1, 1, 1)] * 2 + [(2, 2, 2)] * 2,
    24: [(1, 1, 1)] * 2,
    25: [(1, 1, 1)] + [(0, 2, 2)] * 2,
    27: [(1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2)],
    30: [(1, 1, 1)] * 2 + [(2, 2, 2), (4, 0, 0)],
    60: [(2, 2, 0)] * 4,
    105: [(1, 1, 1)] * 4,
}
#: Weight of each corner's voxel in the code, [axis 0][axis 1][axis 2]; index 1 is the voxel at the position itself.
_WEIGHTS_3D = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])
_WEIGHTS_2D = np.array([[8, 4], [2, 1]])


@cache
def _normals() -> dict[int, tuple[tuple[int, int, int], ...]]:
    """Code 1..254 -> normals, from the representatives by symmetry."""
    table: dict[int, tuple[tuple[int, int, int], ...]] = {}
    for code, normals in _REPRESENTATIVES.items():
        inside = (code & _WEIGHTS_3D) > 0
        for order in permutations(range(3)):
            turned = inside.transpose(order)
            turned_normals = tuple((n[order[0]], n[order[1]], n[order[2]]) for n in normals)
            for flips in product((slice(None), slice(None, None, -1)), repeat=3):
                found = int((_WEIGHTS_3D * turned[flips]).sum())
                table.setdefault(found, turned_normals)
                table.setdefault(255 - found, turned_normals)
    return table


@cache
def _triangles() -> NDArray[np.float64]:
    """[codes, triangles, axes] normals in voxels; zeros where a code has fewer triangles than others."""
    table = _normals()
    found = np.zeros((256, max(map(len, table.values())), 3))
    for code, normals in table.items():
        found[code, : len(normals)] = normals
    return found / 8


def areas(spacing: Sequence[float]) -> NDArray[np.float64]:
    """Area (3D, mm^2) or length (2D, mm) by code, for voxels of ``spacing`` mm; 0 for codes that are no surface."""
    if len(spacing) == 2:
        s0, s1 = spacing
        corner, diagonal = 0.5 * np.hypot(s0, s1), np.hypot(s0, s1)
        by_code = np.full(16, corner)
        by_code[[0, 15]] = 0.0
        by_code[[0b1100, 0b0011]] = s1  # two neighbours along axis 1: the contour runs along axis 1
        by_code[[0b1010, 0b0101]] = s0
        by_code[[0b1001, 0b0110]] = diagonal
        return by_code
    s0, s1, s2 = spacing
    return np.sqrt(((_triangles() * (s1 * s2, s0 * s2, s0 * s1)) ** 2).sum(axis=2)).sum(axis=1)
