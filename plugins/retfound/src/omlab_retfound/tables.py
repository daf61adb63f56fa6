"""Tables of positions: sine and cosine, and the change of their grid. NumPy and torch are imported by who uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def sincos(width: int, grid: int, *, cls_token: bool = True) -> NDArray[np.float32]:
    """[grid^2 (+ 1), width] float32 fixed positions: the first half of the channels encodes the column, the second the
    row, each as sines then cosines of ``position / 10000^(k / (width / 4))``; the CLS row is zero."""
    if width % 4:
        raise ValueError(f"a width of {width} cannot hold sines and cosines of two axes, it must be a multiple of 4")
    quarter = width // 4
    frequencies = 1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float64) / quarter)
    rows, columns = np.mgrid[:grid, :grid]

    def encode(positions: NDArray[np.int_]) -> NDArray[np.float64]:
        angles = positions.reshape(-1, 1).astype(np.float64) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    table = np.concatenate([encode(columns), encode(rows)], axis=1)
    if cls_token:
        table = np.concatenate([np.zeros((1, width)), table])
    return table.astype(np.float32)


def interpolate(table: Tensor, patches: int, extra: int = 1) -> Tensor:
    """Position table [1, extra + old, width] for another number of patches: bicubic, corners not aligned, no
    antialiasing; the first ``extra`` rows stay."""
    import torch
    from torch.nn import functional as F

    old, new = int((table.shape[1] - extra) ** 0.5), int(patches**0.5)
    if old == new:
        return table
    grid = table[:, extra:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :extra], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
