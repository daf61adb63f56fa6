"""Reports of evaluators: values with intervals, per case and in total, and why a value is undefined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Value:
    """One figure.

    Attributes
    ----------
    value : the figure; ``None`` where it is undefined, with ``undefined`` saying why.
    low, high : bounds of the interval, where there are enough cases.
    n : number of cases behind it. ``infinite`` cases (a distance to an empty mask) are counted, not hidden.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 1
    unit: str = ""
    undefined: str = ""


@attrs.frozen(kw_only=True)
class Report:
    """What an evaluator found.

    Attributes
    ----------
    evaluator, title : its name, and how a heading calls it.
    summary : metric, or ``structure/metric`` -> value.
    cases : one row a case and structure, JSON-able.
    options : options and conventions in force, all that is needed to do it again.
    environment : versions, digests.
    warnings : one line each.
    table : rows of texts, the headings first, where the figures read better together than one a line; the terminal
        shows it in place of the summary, the page above it.
    machine : what ``--json`` prints where the evaluator has a stable form of its own; the whole report without.
    illustration : draws the report's picture: takes a title, gives a Pillow image.
    """

    evaluator: str
    summary: Mapping[str, Value]
    cases: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    environment: Mapping[str, Any] = attrs.field(factory=dict)
    warnings: Sequence[str] = ()
    title: str = ""
    table: Sequence[Sequence[str]] = attrs.field(default=(), eq=False)
    machine: Any = attrs.field(default=None, eq=False)
    illustration: Callable[[str], Any] | None = attrs.field(default=None, eq=False)

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data; numbers that JSON lacks become the strings ``"inf"``, ``"-inf"`` and ``"nan"``."""
        shown = attrs.asdict(self, filter=lambda field, _: field.name not in ("table", "machine", "illustration"))
        return jsonable(shown)  # type: ignore[no-any-return]

    def as_machine(self) -> Any:
        """What ``--json`` prints."""
        return self.as_json() if self.machine is None else jsonable(self.machine)


def jsonable(value: Any) -> Any:
    """Data that strict JSON takes: tuples as lists, NumPy numbers as Python's, non-finite floats as words."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
