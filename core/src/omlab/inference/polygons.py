"""Points inside of polygons with whole-number corners: exact, and many at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def locate(contour: NDArray[np.integer[Any]], points: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """Where points lie: 1 inside, 0 on the outline, -1 outside; the even-odd rule.

    Equal to OpenCV's ``pointPolygonTest`` without distance, point by point; but rows of a grid share their work.

    Parameters
    ----------
    contour : [n, 2] corners (x, y) in order, closed from the last to the first.
    points : [m, 2] (x, y).
    """
    x1, y1 = (contour[:, axis].astype(np.int64) for axis in (0, 1))
    x2, y2 = np.roll(x1, -1), np.roll(y1, -1)
    px, py = points[:, 0].astype(np.int64), points[:, 1].astype(np.int64)
    found = np.full(len(points), -1, np.int8)
    low, high = np.minimum(y1, y2), np.maximum(y1, y2)
    rows, inverse = np.unique(py, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(rows) + 1))
    for number, y in enumerate(rows):
        touching = np.flatnonzero((low <= y) & (y <= high))
        if not len(touching):
            continue
        members = order[starts[number] : starts[number + 1]]
        x = px[members][:, None]
        ax, ay, bx, by = x1[touching], y1[touching], x2[touching], y2[touching]
        # Twice the area of (start, end, point): zero on the line, its sign the side.
        cross = (bx - ax) * (y - ay) - (x - ax) * (by - ay)
        between = (np.minimum(ax, bx) <= x) & (x <= np.maximum(ax, bx))
        on = ((cross == 0) & between).any(axis=1)
        # A ray to the right meets edges that span the row, half open so that a corner counts once.
        spans = (ay <= y) != (by <= y)
        right = np.where(by > ay, cross > 0, cross < 0)
        inside = (spans & right).sum(axis=1) % 2 == 1
        found[members] = np.where(on, 0, np.where(inside, 1, -1))
    return found
