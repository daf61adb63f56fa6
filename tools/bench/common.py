"""What the benchmarks share: interleaved timing, and rows of a table that can be pasted into RESULTS.md."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Row:
    """One way of doing one thing.

    Attributes
    ----------
    what, way : the thing, and how it was done.
    seconds, best : median and least of the rounds.
    ratio : how many times faster than the baseline in the same run; ``None`` where there is none.
    note : whatever else was found.
    """

    what: str
    way: str
    seconds: float
    best: float
    ratio: float | None = None
    note: str = ""


def interleaved(
    ways: Mapping[str, Callable[[], Any]], rounds: int, *, seconds: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds of each round of each way, in turn, so that a busy moment hits all alike. One round is not counted.

    No round begins after ``seconds``, but one is always counted.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    for number in range(rounds + 1):
        if number > 1 and time.perf_counter() - began > seconds:
            break
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def compared(
    what: str,
    ways: Mapping[str, Callable[[], Any]],
    baseline: str,
    rounds: int,
    *,
    unit: str,
    each: Mapping[str, int] | None = None,
) -> Iterator[Row]:
    """Rows of ``ways``, run in turn.

    Parameters
    ----------
    baseline : the way that the others are compared with.
    unit : what one call does one of, in the plural; seconds are of one of them.
    each : how many of them a call of a way does, where it is not one.
    """
    counts = each or {}
    taken = {name: [one / counts.get(name, 1) for one in found] for name, found in interleaved(ways, rounds).items()}
    base = statistics.median(taken[baseline])
    for name, found in taken.items():
        middle = statistics.median(found)
        note = f"{1 / middle:.1f} {unit}/s"
        yield Row(what=what, way=name, seconds=middle, best=min(found), ratio=base / middle, note=note)


def machine() -> str:
    """The processor, how many of it this process may use, and the date."""
    from omlab.engines.hardware import cpu
    from omlab.memory import usable_cpus

    return f"{cpu().model}, {usable_cpus()} usable processors, {platform.system()}, {date.today().isoformat()}"


def table(rows: Iterable[Row], *, baseline: str) -> str:
    """Rows as a Markdown table, with the machine and the date above it."""
    lines = [
        f"{machine()}",
        "",
        f"| what | way | median | best | times faster than {baseline} | |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(
            f"| {row.what} | {row.way} | {row.seconds * 1e3:.1f} ms | {row.best * 1e3:.1f} ms | {ratio} | {row.note} |"
        )
    return "\n".join(lines)
