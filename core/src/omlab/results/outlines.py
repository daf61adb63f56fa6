"""Outlines of masks along the edges of their pixels, so that a polygon holds exactly the area of the mask."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

#: A vertex as (row, column), in units of pixels; pixel (r, c) reaches from r - 0.5 to r + 0.5.
Point = tuple[float, float]


class _Corner:
    """A vertex of a loop, and the one that follows."""

    __slots__ = ("at", "next")

    def __init__(self, at: Point) -> None:
        self.at = at
        self.next: _Corner = self


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed polygons around the pixels of a 2D mask, [vertices, (row, column)] each, the first vertex not repeated.

    Pixels that touch only at a corner are apart (4-connected). A hole is joined to the outline around it by a cut of
    no width, since readers differ in what they take a second contour of a structure for (PS3.3 C.8.8.6.3 describes
    the cut). Area and centroid of the polygons are those of the pixels.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    loops, left_edges = _loops(padded)
    seen: set[int] = set()
    outer: list[_Corner] = []
    holes: list[tuple[int, int, _Corner]] = []
    for start in loops:
        if id(start) in seen:
            continue
        leftmost = None
        area = 0.0
        corner = start
        while True:
            seen.add(id(corner))
            (r0, c0), (r1, c1) = corner.at, corner.next.at
            area += r0 * c1 - r1 * c0
            if c0 == c1 and (leftmost is None or c0 < leftmost[1]):
                leftmost = (int(min(r0, r1)), int(c0), corner)
            corner = corner.next
            if corner is start:
                break
        if area < 0:  # clockwise in rows and columns
            outer.append(start)
        elif leftmost is not None:
            holes.append(leftmost)
    for row, column, edge in holes:
        # The pixels to the left of the hole's leftmost edge are inside; the cut goes through them to what ends them.
        line = padded[row]
        end = column - 1
        while line[end]:
            end -= 1
        _join(edge, left_edges[row, end + 1], row + 0.5)
    # Half a pixel for the pixel's edge, one more for the padding.
    return [np.array(_straightened(start)) - 1.5 for start in outer]


def _loops(padded: NDArray[np.bool_]) -> tuple[list[_Corner], dict[tuple[int, int], _Corner]]:
    """Directed unit edges with the inside at their right hand, linked into loops.

    The lattice point (r, c) is the upper left corner of the padded pixel (r, c). Returns the corners, and those that
    begin the left edge of an inside pixel, by (row, column) of the pixel.
    """
    right = np.add(np.argwhere(padded[1:, :] & ~padded[:-1, :]), (1, 0))  # inside below
    left = np.add(np.argwhere(padded[:-1, :] & ~padded[1:, :]), (1, 0))  # inside above
    down = np.add(np.argwhere(padded[:, :-1] & ~padded[:, 1:]), (0, 1))  # inside at the left
    up = np.add(np.argwhere(padded[:, 1:] & ~padded[:, :-1]), (0, 1))  # inside at the right
    leaving: dict[Point, dict[str, _Corner]] = {}
    corners: list[_Corner] = []
    ends: list[tuple[_Corner, Point, str]] = []
    rising: dict[tuple[int, int], _Corner] = {}
    for way, edges, begin, finish in (
        ("right", right, (0, 0), (0, 1)), ("left", left, (0, 1), (0, 0)),
        ("down", down, (0, 0), (1, 0)), ("up", up, (1, 0), (0, 0)),
    ):  # fmt: skip
        for r, c in edges.tolist():
            corner = _Corner((r + begin[0], c + begin[1]))
            leaving.setdefault(corner.at, {})[way] = corner
            ends.append((corner, (r + finish[0], c + finish[1]), way))
            corners.append(corner)
            if way == "up":
                rising[r, c] = corner
    # Where two pixels touch at a corner, two edges leave it; the one that keeps to its own pixel is the turn to the
    # right of where one came from, as the inside is at the right.
    turn = {"right": "down", "down": "left", "left": "up", "up": "right"}
    for corner, end, way in ends:
        choices = leaving[end]
        corner.next = choices[turn[way]] if len(choices) > 1 else next(iter(choices.values()))
    return corners, rising


def _join(hole: _Corner, outside: _Corner, row: float) -> None:
    """Cut from the edge that begins at ``hole`` to the one that begins at ``outside``, at half their height."""
    there, back = _Corner((row, hole.at[1])), _Corner((row, hole.at[1]))
    go, come = _Corner((row, outside.at[1])), _Corner((row, outside.at[1]))
    go.next, there.next = there, hole.next
    come.next, back.next = outside.next, come
    outside.next, hole.next = go, back


def _straightened(start: _Corner) -> Iterable[Point]:
    """The vertices at which the loop turns."""
    points = []
    corner = start
    while True:
        points.append(corner.at)
        corner = corner.next
        if corner is start:
            break
    array = np.array(points, dtype=np.float64)
    before, after = array - np.roll(array, 1, axis=0), np.roll(array, -1, axis=0) - array
    turns = (np.sign(before) != np.sign(after)).any(axis=1)
    return array[turns].tolist()  # type: ignore[no-any-return]
