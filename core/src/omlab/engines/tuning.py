"""Measure every admitted engine on the model's own examples, and remember the fastest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import Variant
from omlab.engines import choice
from omlab.engines.admission import Admission, NotAdmitted
from omlab.engines.base import Backend, Engine
from omlab.engines.choice import AUTO, Candidate, Choice, Wish
from omlab.engines.origin import Subject
from omlab.engines.parity import ParityRecord
from omlab.engines.provider import refusal
from omlab.errors import EngineError
from omlab.graphs import Graph
from omlab.progress import Listener, Progress, silent

if TYPE_CHECKING:
    import numpy as np

    from omlab.export import Exporter
    from omlab.model import Model


@attrs.frozen(kw_only=True)
class TuneRow:
    """One way of running, measured or not.

    Attributes
    ----------
    milliseconds : median over the rounds of one pass over the examples; ``None`` where it was not measured.
    best : the fastest pass.
    parity : how it agrees, where it was admitted.
    reason : why it was not measured.
    chosen : it was the fastest and is remembered.
    """

    backend: str
    precision: str
    device: str
    provider: str = ""
    milliseconds: float | None = None
    best: float | None = None
    parity: ParityRecord | None = None
    reason: str = ""
    chosen: bool = False

    @property
    def admitted(self) -> bool:
        """Does it agree with the reference?"""
        return self.parity is not None and self.parity.admitted

    def cells(self) -> list[str]:
        """Engine, precision, device, median, agreement: a row of a table for people."""
        median = "-" if self.milliseconds is None else f"{self.milliseconds:.1f} ms{' *' if self.chosen else ''}"
        agreement = self.parity.summary() if self.parity is not None else self.reason
        return [self.backend, self.precision or "-", self.device or "-", median, agreement]

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        fields = {field.name: getattr(self, field.name) for field in attrs.fields(TuneRow)}
        return {**fields, "parity": self.parity.as_json() if self.parity is not None else None}


def tune(
    model: Model,
    variant: Variant,
    graph: Graph,
    *,
    files: Mapping[str, Path],
    weights_digest: str,
    root: Path,
    backends: Iterable[Backend],
    exporter: Callable[[], Exporter | None] | None,
    engine: str = AUTO,
    precision: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
    rounds: int = 5,
    listener: Listener = silent,
) -> list[TuneRow]:
    """Measure all engines that are admitted, round by round so that a busy moment hits all of them alike.

    The fastest median is remembered for this model, variant, graph and machine, unless something was pinned: then
    not all were measured. Parameters and errors are those of :func:`omlab.engines.provide`, and

    Parameters
    ----------
    rounds : passes over the examples for each engine, after one that is not counted; 0: engines are only admitted,
        nothing is measured or remembered.

    Returns
    -------
    One row for every way of running, the fastest first, those not measured last.
    """
    subject = Subject(
        model=model,
        variant=variant,
        graph=graph,
        files=files,
        weights_digest=weights_digest,
        exporter=exporter,
        listener=listener,
    )
    wish = Wish(engine, precision, device)
    queue, tried = choice.candidates(backends, graph, wish)
    admission = Admission(subject, root, threads)
    admitted: list[tuple[Candidate, Engine, ParityRecord]] = []
    remedies: list[str] = []
    for candidate in queue:
        try:
            admitted.append((candidate, *admission.admit(candidate)))
        except NotAdmitted as error:
            tried.append(candidate.tried(error.reason))
            remedies += [error.remedy] if error.remedy else []
    if not admitted:
        raise refusal(subject, wish, queue, tried, remedies)
    times: list[list[float]] = [[] for _ in admitted]
    if rounds:
        try:
            inputs = admission.origin.inputs()
        except EngineError:
            # Only torch runs here and nothing was exported: its examples need no reference.
            inputs = list(model.examples(graph, variant))
        times = _measure([found for _, found, _ in admitted], inputs, rounds, subject)
    rows = []
    for (candidate, _, record), taken in zip(admitted, times, strict=True):
        rows.append(
            TuneRow(
                backend=candidate.name,
                precision=candidate.target.precision.value,
                device=candidate.target.device,
                provider=candidate.target.provider,
                milliseconds=round(statistics.median(taken) * 1e3, 3) if taken else None,
                best=round(min(taken) * 1e3, 3) if taken else None,
                parity=record,
            )
        )
    rows.sort(key=lambda row: row.milliseconds or 0.0)
    if wish == Wish() and rounds:
        first = rows[0]
        rows[0] = attrs.evolve(first, chosen=True)
        fastest = Choice(first.backend, first.precision, first.device, first.provider, first.milliseconds or 0.0)
        choice.remember(root, model.card.name, variant.name, graph.name, fastest)
    return rows + [TuneRow(backend=t.backend, precision=t.precision, device=t.device, reason=t.reason) for t in tried]


def _measure(
    engines: list[Engine], inputs: list[dict[str, np.ndarray]], rounds: int, subject: Subject
) -> list[list[float]]:
    """Seconds of each pass over the examples, by engine."""
    times: list[list[float]] = [[] for _ in engines]
    for number in range(rounds + 1):
        subject.listener(Progress(subject.label, "tune", number, rounds, "rounds"))
        for engine, taken in zip(engines, times, strict=True):
            start = time.perf_counter()
            for example in inputs:
                engine(example)
            if number:  # the first pass also fills caches and allocates
                taken.append(time.perf_counter() - start)
    return times
