"""Charts show the figures that they are given, where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from omlab import charts


def _dots(picture: np.ndarray) -> list[float]:
    """Middle columns of the dots of each row of a chart of figures."""
    rows = [picture[92 + 24 * n : 92 + 24 * (n + 1)] for n in range((len(picture) - 92) // 24)]
    found = [np.flatnonzero((row == charts.DOT).all(-1).any(axis=0)) for row in rows]
    return [float(columns.mean()) for columns in found if len(columns)]


def test_dots_lie_at_their_values_and_bars_reach_as_far_as_intervals() -> None:
    rows = [
        charts.Figure("a", 0.2, 0.1, 0.5), charts.Figure("b", math.nan), charts.Figure("c", 0.8),
        charts.Figure("a name that is far too long to be shown as it is", 0.5, 0.4, math.nan),
    ]  # fmt: skip
    picture = np.asarray(charts.sheet("title", [charts.figures("chart", rows, low=0.0, high=1.0)]))
    dots = _dots(picture)
    assert len(dots) == 3  # what is undefined has none
    assert dots[1] - dots[0] == pytest.approx(2 * (dots[2] - dots[0]), abs=2)
    scale = (dots[1] - dots[0]) / 0.6
    band = np.flatnonzero((picture[92:116] == charts.BAND).all(-1).any(axis=0))
    assert (band.min(), band.max()) == pytest.approx((dots[0] - 0.1 * scale, dots[0] + 0.3 * scale), abs=3)
    assert not (picture[92 + 72 : 92 + 96] == charts.BAND).all(-1).any()
    charts.sheet("t", [charts.figures("all equal", [charts.Figure("a", 1.0)])])
    charts.sheet("t", [charts.figures("none", [charts.Figure("a", math.nan)])])


def test_a_table_is_shaded_by_the_share_of_its_row() -> None:
    picture = np.asarray(charts.sheet("t", [charts.matrix("m", ["x", "y"], [[9, 0], [0, 0]], "answer", "reference")]))
    assert (picture == charts.DOT).all(-1).sum() > 1000  # the cell of 9 of 9, and an empty row is no error


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.38, 0.81, [0.4, 0.5, 0.6, 0.7, 0.8]), (-3, 40, [0, 10, 20, 30, 40]),
     (900, 1130, [900, 950, 1000, 1050, 1100])],
)  # fmt: skip
def test_marks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert charts.ticks(low, high) == wanted
