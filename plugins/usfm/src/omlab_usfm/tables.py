"""Relative position tables for another grid: resampled on an axis whose steps grow geometrically.

Near offsets matter more, so the old offsets are thought of as lying at -d_n .. d_n with d_1 = 1 and steps 1, q, q^2,
..., where q makes the outermost one meet the outermost offset of the new grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omlab.errors import WeightsError

#: Rows of the class token at the end of a table.
EXTRA = 3


def ratio(old: int, new: int) -> float:
    """q for tables of ``old`` and ``new`` offsets a side, by upstream's bisection."""
    left, right = 1.01, 1.5
    q = (left + right) / 2
    while right - left > 1e-6:
        q = (left + right) / 2
        if (1 - q ** (old // 2)) / (1 - q) > new // 2:
            right = q
        else:
            left = q
    return q


def axis(old: int, new: int) -> NDArray[np.float64]:
    """[old] places of the old offsets on the new grid."""
    places = np.cumsum(ratio(old, new) ** np.arange(old // 2))
    return np.concatenate([-places[::-1], [0.0], places])


def resized(table: NDArray[np.float32], grid: int, *, transposed: bool = True) -> NDArray[np.float32]:
    """[(2 * old - 1)^2 + 3, heads] for another ``grid`` of patches; a table that fits is given back.

    Parameters
    ----------
    transposed : swap row and column offsets, as upstream's resize does and the networks fine-tuned with it expect;
        ``False`` gives the correct form. A table that is not resized is never swapped.

    Places beyond the outermost old offset, by less than 1e-4, are moved onto it; upstream gives NaN there, and with it
    nothing but NaN for images of 256, 384, 448, 480 and 896 pixels.

    Raises
    ------
    omlab.errors.WeightsError
        The table is of no square grid.
    """
    from scipy.interpolate import make_interp_spline

    heads, new = table.shape[1], 2 * grid - 1
    old = round((table.shape[0] - EXTRA) ** 0.5)
    if old**2 != table.shape[0] - EXTRA or old % 2 == 0:
        raise WeightsError(
            f"a table of {table.shape[0]} relative positions is of no square grid of patches",
            remedy="It is the file of another model",
        )
    if old == new:
        return table
    places = axis(old, new)
    targets = np.clip(np.arange(-(new // 2), new // 2 + 1, dtype=np.float64), places[0], places[-1])
    square = table[:-EXTRA].astype(np.float64).reshape(old, old, heads)
    # Cubic splines without a knot next to the ends, along rows and then along columns.
    along_rows = make_interp_spline(places, square, k=3, axis=0)(targets)
    both = make_interp_spline(places, along_rows, k=3, axis=1)(targets)
    if transposed:
        both = both.transpose(1, 0, 2)
    return np.concatenate([both.reshape(-1, heads).astype(np.float32), table[-EXTRA:]])
