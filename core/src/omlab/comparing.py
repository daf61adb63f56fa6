"""Reports side by side, and whether one is better than another: paired bootstrap over the cases they share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.errors import InputError, UsageError

if TYPE_CHECKING:
    from omlab.evaluator import Evaluator, Resampled

#: Cases below which no interval is given.
FEWEST = 5


@attrs.frozen(kw_only=True)
class Row:
    """One figure of several reports.

    Attributes
    ----------
    metric : its name, as in the reports.
    values : of each report; ``None`` where it is undefined or absent.
    difference : of the last report from the first, over the cases that both have where the metric is a mean over cases.
    low, high : 95 % bounds of the difference; ``None`` where the metric is no mean over cases, or cases are few.
    cases : how many cases the interval is over.
    """

    metric: str
    values: tuple[float | None, ...]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    cases: int = 0

    @property
    def verdict(self) -> str:
        """``"differs"`` where the interval leaves out 0, ``"not told apart"`` where it does not, else empty."""
        if self.low is None or self.high is None:
            return ""
        return "differs" if self.low > 0 or self.high < 0 else "not told apart"


def read(path: Path) -> dict[str, Any]:
    """A report that ``omlab score -o`` or ``omlab evaluate -o`` wrote. Raises :class:`omlab.errors.InputError`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, a report was expected") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    summary, cases = (found.get("summary"), found.get("cases", [])) if isinstance(found, dict) else (None, None)
    sound = isinstance(summary, dict) and isinstance(cases, list) and "evaluator" in found
    if not sound or not all(isinstance(part, dict) for part in (*summary.values(), *cases)):
        raise InputError(f"{path}: is no report", remedy="omlab score ... -o FILE writes one")
    return found


def compare(
    reports: Sequence[Mapping[str, Any]], *, rounds: int = 10_000, seed: int = 0, evaluator: Evaluator | None = None
) -> list[Row]:
    """Every figure of the reports, and how the last differs from the first.

    Where a report has the metric for single cases, the same cases are drawn for both sides, so that what makes a case
    hard for both does not count (paired percentile bootstrap of the mean difference).

    Parameters
    ----------
    evaluator : of the reports; draws figures that are no mean over cases, say an AUC.

    Raises
    ------
    UsageError
        There are fewer than two reports, or they are of different evaluators.
    """
    if len(reports) < 2:
        raise UsageError("a comparison needs two reports or more")
    evaluators = {report["evaluator"] for report in reports}
    if len(evaluators) > 1:
        raise UsageError(f"the reports are of different evaluators: {', '.join(sorted(evaluators))}")
    metrics = dict.fromkeys(name for report in reports for name in report["summary"])
    drawn = evaluator.resampled([reports[0], reports[-1]], rounds=rounds, seed=seed) if evaluator is not None else {}
    return [
        _drawn(metric, reports, drawn[metric]) if metric in drawn else _row(metric, reports, rounds, seed)
        for metric in metrics
    ]


def _drawn(metric: str, reports: Sequence[Mapping[str, Any]], found: Resampled) -> Row:
    import numpy as np

    values = tuple(_number(report["summary"].get(metric, {}).get("value")) for report in reports)
    gaps = found.draws[-1] - found.draws[0]
    gaps = gaps[np.isfinite(gaps)]
    gap = float(found.values[-1] - found.values[0])
    if found.cases < FEWEST or not len(gaps) or not math.isfinite(gap):
        return Row(metric=metric, values=values, difference=gap if math.isfinite(gap) else None)
    low, high = np.percentile(gaps, [2.5, 97.5])
    return Row(metric=metric, values=values, difference=gap, low=float(low), high=float(high), cases=found.cases)


def _row(metric: str, reports: Sequence[Mapping[str, Any]], rounds: int, seed: int) -> Row:
    import numpy as np

    values = tuple(_number(report["summary"].get(metric, {}).get("value")) for report in reports)
    first, last = by_case(reports[0], metric), by_case(reports[-1], metric)
    shared = [case for case in first if case in last]
    if len(shared) < FEWEST:
        both = values[0] is not None and values[-1] is not None
        return Row(metric=metric, values=values, difference=values[-1] - values[0] if both else None)  # type: ignore[operator]
    gaps = np.array([last[case] - first[case] for case in shared])
    generator = np.random.default_rng(seed)
    means = gaps[generator.integers(0, len(gaps), (rounds, len(gaps)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Row(
        metric=metric, values=values, difference=float(gaps.mean()), low=float(low), high=float(high), cases=len(gaps)
    )


def by_case(report: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Case -> finite value of a metric that the report has for single cases; a metric ``GROUP/NAME`` is the column NAME
    of the rows of which one field is GROUP."""
    group, _, name = metric.rpartition("/")
    found = {}
    for row in report.get("cases", ()):
        if "case" not in row or name not in row or (group and group not in row.values()):
            continue
        value = _number(row[name])
        if value is not None and math.isfinite(value):
            found[str(row["case"])] = value
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {"inf": math.inf, "-inf": -math.inf}.get(value) if isinstance(value, str) else None
    return float(value)
