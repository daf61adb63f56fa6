"""Means over structures, in each of which a structure counts once, in however many cases it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.evaluator import Resampled
from omlab.report import Value

#: Stands for a structure's name in front of the metric.
ALL = "mean of structures"
#: Cases that an interval takes at least.
FEWEST = 3

Rows = Sequence[Mapping[str, Any]]


def table(rows: Rows, metric: str, structures: Sequence[str], cases: Sequence[str]) -> NDArray[np.float64]:
    """[structure, case] of a metric; NaN where it is undefined."""
    found = np.full((len(structures), len(cases)), np.nan)
    row_of = {name: number for number, name in enumerate(structures)}
    column_of = {name: number for number, name in enumerate(cases)}
    for row in rows:
        if row["structure"] in row_of and row["case"] in column_of and row[metric] is not None:
            found[row_of[row["structure"]], column_of[row["case"]]] = float(row[metric])
    return found


def mean(values: NDArray[np.float64]) -> float:
    """Mean over structures of their means over cases, of those that have any value; NaN where none has."""
    return float(_means(values, np.ones((1, values.shape[1])))[0])


def draws(values: NDArray[np.float64], rounds: int, seed: int) -> NDArray[np.float64]:
    """:func:`mean` of so many draws of the cases with replacement, [rounds]; all structures of a case are drawn
    together, as they are of one scan."""
    cases = values.shape[1]
    picked = np.random.default_rng(seed).integers(0, cases, (rounds, cases))
    return _means(values, np.stack([np.bincount(row, minlength=cases) for row in picked]).astype(float))


def _means(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    there = ~np.isnan(values)
    counts = times @ there.T.astype(float)  # [rounds, structures]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = times @ np.where(there, values, 0.0).T / counts
        found = np.nansum(means, axis=1) / np.count_nonzero(counts, axis=1)
    return np.asarray(found)


def value(rows: Rows, metric: str, options: Mapping[str, Any]) -> Value:
    """The figure with a bootstrap interval over cases; infinite where a structure's is."""
    unit = "mm" if metric.endswith("_mm") else ""
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    found = table(rows, metric, structures, cases)
    if np.isnan(found).all():
        return Value(value=None, n=0, unit=unit, undefined="no structure has a voxel in any case")
    scored = int(np.count_nonzero(~np.isnan(found).all(axis=0)))
    if np.isinf(found).any():
        return Value(value=math.inf, n=scored, unit=unit)
    if scored < FEWEST:
        return Value(value=mean(found), n=scored, unit=unit)
    low, high = np.nanpercentile(draws(found, options["rounds"], options["seed"]), [2.5, 97.5])
    return Value(value=mean(found), low=float(low), high=float(high), n=scored, unit=unit)


def resampled(
    reports: Sequence[Mapping[str, Any]], metrics: Sequence[str], rounds: int, seed: int
) -> dict[str, Resampled]:
    """:func:`mean` of every report over the cases that all share, on the same draws, for each metric that they have."""
    needed = {"case", "structure", *metrics}
    tables = [[row for row in report.get("cases", ()) if needed <= row.keys()] for report in reports]
    names = [dict.fromkeys(row["case"] for row in rows) for rows in tables]
    cases = [case for case in names[0] if all(case in other for other in names)]
    structures = list(dict.fromkeys(row["structure"] for rows in tables for row in rows))
    if not cases or len(structures) < 2:
        return {}
    found = {}
    for metric in metrics:
        values = [table(rows, metric, structures, cases) for rows in tables]
        if not any(np.isinf(one).any() or np.isnan(one).all() for one in values):
            found[f"{ALL}/{metric}"] = Resampled(
                np.array([mean(one) for one in values]), np.stack([draws(one, rounds, seed) for one in values]),
                len(cases),
            )  # fmt: skip
    return found
