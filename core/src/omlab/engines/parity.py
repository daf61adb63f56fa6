"""The parity gate: an engine is admitted only if it agrees with the float32 torch reference.

How outputs are compared is the graph's word (:class:`omlab.graphs.Judge`), how far they may differ its tolerance
for the engine's precision (:class:`omlab.graphs.Tolerance`). An output that is not finite is never admitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np

from omlab.engines.base import Engine
from omlab.graphs import Graph, Judge, Tolerance
from omlab.report import jsonable
from omlab.vocabulary import Precision

#: Inputs and reference outputs of one example.
Example = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def _index(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value)


def _rows(value: Iterable[OutputParity]) -> tuple[OutputParity, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class Deviation:
    """The greatest difference of single numbers, and where it is."""

    example: int
    index: tuple[int, ...] = attrs.field(converter=_index)
    expected: float
    found: float

    @property
    def size(self) -> float:
        """Absolute difference."""
        return abs(self.expected - self.found)


@attrs.frozen(kw_only=True)
class OutputParity:
    """How one output agrees: the worst figures over all examples.

    Attributes
    ----------
    flips_ppm : labels (or arg-max classes) that differ, in parts per million.
    dice : overlap of what is labelled, all foreground classes together: a structure of a few voxels would
        otherwise decide alone.
    cosine : smallest cosine of two vectors on the last axis.
    relative : norm of the difference over the norm of the reference.
    gap : greatest difference of soft-maxed values (of the sigmoid, for a single logit).
    perplexity : how many times greater it is than the reference's on text that the reference would write.
    deviation : the greatest difference and where it is.
    why_not : why the output is not admitted, empty where it is.
    """

    output: str
    judge: Judge = attrs.field(converter=Judge)
    flips_ppm: float | None = None
    dice: float | None = None
    cosine: float | None = None
    relative: float | None = None
    gap: float | None = None
    perplexity: float | None = None
    deviation: Deviation | None = None
    why_not: str = ""

    @property
    def admitted(self) -> bool:
        """Does the output agree?"""
        return not self.why_not


@attrs.frozen(kw_only=True)
class ParityRecord:
    """How an engine agrees with the reference.

    Attributes
    ----------
    precision : arithmetic that the tolerance is for.
    outputs : one record an output.
    examples : number of examples compared.
    is_reference : the engine is the float32 torch reference itself; nothing was compared.
    """

    precision: Precision = attrs.field(converter=Precision)
    outputs: tuple[OutputParity, ...] = attrs.field(default=(), converter=_rows)
    examples: int = 0
    is_reference: bool = False

    @property
    def admitted(self) -> bool:
        """Do all outputs agree?"""
        return self.is_reference or (bool(self.outputs) and all(output.admitted for output in self.outputs))

    @property
    def why_not(self) -> str:
        """Why the engine is not admitted, empty where it is."""
        if self.is_reference:
            return ""
        if not self.outputs:
            return "no example was compared"
        return "; ".join(output.why_not for output in self.outputs if output.why_not)

    def summary(self) -> str:
        """The figures in a few words, say ``"0 flips/million, Dice 1.00000"``."""
        if self.is_reference:
            return "the reference"
        return "; ".join(_words(output) for output in self.outputs)

    def judged(self, graph: Graph) -> ParityRecord:
        """The same figures under the tolerances that ``graph`` has now."""
        if self.is_reference:
            return self
        outputs = [
            attrs.evolve(output, why_not=_why_not(output, graph.tolerance(output.output, self.precision)))
            if _measured(output)
            else output
            for output in self.outputs
        ]
        return attrs.evolve(self, outputs=outputs)

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data, with what was decided."""
        data = jsonable(attrs.asdict(self))
        return {**data, "admitted": self.admitted, "why_not": self.why_not}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ParityRecord:
        """The inverse of :meth:`as_json`. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for other data."""
        outputs = []
        for row in data["outputs"]:
            deviation = row["deviation"]
            if deviation is not None:
                numbers = {name: float(deviation[name]) for name in ("expected", "found")}
                deviation = Deviation(example=deviation["example"], index=deviation["index"], **numbers)
            figures: dict[str, Any] = {name: None if row.get(name) is None else float(row[name]) for name in _FIGURES}
            outputs.append(
                OutputParity(
                    output=row["output"], judge=row["judge"], deviation=deviation, why_not=row["why_not"], **figures
                )
            )
        return cls(
            precision=data["precision"], outputs=outputs, examples=data["examples"], is_reference=data["is_reference"]
        )


#: Figure -> whether a greater value is better.
_FIGURES = {"flips_ppm": False, "dice": True, "cosine": True, "relative": False, "gap": False, "perplexity": False}


def compare(
    engine: Engine, graph: Graph, examples: Iterable[Example]
) -> tuple[ParityRecord, dict[str, np.ndarray] | None]:
    """Run ``engine`` on the examples and judge what it gives.

    Returns
    -------
    The record, and where the engine is not admitted the tensors of the first example that shows it, named
    ``input/<name>``, ``reference/<name>`` and ``engine/<name>``.
    """
    precision = engine.info.precision
    worst: dict[str, OutputParity] = {}
    kept: dict[str, np.ndarray] | None = None
    count = 0
    for inputs, expected in examples:
        found = engine(inputs)
        failed = False
        for spec in graph.outputs:
            row = compare_output(graph, spec.name, precision, expected[spec.name], found[spec.name], example=count)
            failed |= not row.admitted
            worst[spec.name] = _worse(worst[spec.name], row) if spec.name in worst else row
        if failed and kept is None:
            kept = {f"input/{name}": array for name, array in inputs.items()}
            kept |= {f"reference/{name}": array for name, array in expected.items()}
            kept |= {f"engine/{name}": array for name, array in found.items()}
        count += 1
    return ParityRecord(precision=precision, outputs=worst.values(), examples=count), kept


def compare_output(
    graph: Graph, name: str, precision: Precision, expected: np.ndarray, found: np.ndarray, *, example: int = 0
) -> OutputParity:
    """Judge one output of one example."""
    judge = graph.judge_of(name)

    def refused(why: str, deviation: Deviation | None = None) -> OutputParity:
        return OutputParity(output=name, judge=judge, deviation=deviation, why_not=f"output '{name}': {why}")

    if found.shape != expected.shape:
        return refused(f"shape {found.shape}, the reference has {expected.shape}")
    if found.dtype != expected.dtype:
        return refused(f"dtype {found.dtype}, the reference has {expected.dtype}")
    if expected.size == 0:
        return refused("is empty, nothing can be compared")
    if expected.dtype.kind == "f":
        for what, array in (("the reference", expected), ("the engine", found)):
            finite = np.isfinite(array)
            if not finite.all():
                at = int(np.argmin(finite))
                count = int(array.size - np.count_nonzero(finite))
                index = tuple(int(i) for i in np.unravel_index(at, array.shape))
                where = Deviation(
                    example=example, index=index, expected=float(expected.flat[at]), found=float(found.flat[at])
                )
                return refused(f"{what} gave {count} numbers that are not finite, the first at {list(index)}", where)
    figures: dict[str, Any] = _MEASURES[judge](expected, found)
    row = OutputParity(output=name, judge=judge, deviation=_deviation(expected, found, example), **figures)
    return attrs.evolve(row, why_not=_why_not(row, graph.tolerance(name, precision)))


def _why_not(row: OutputParity, tolerance: Tolerance) -> str:
    """What exceeds the tolerance, and where the greatest difference is; empty where nothing does."""
    reasons = []
    judged = 0
    for name, more_is_better in _FIGURES.items():
        bound, value = getattr(tolerance, name), getattr(row, name)
        if bound is None or value is None:
            continue
        judged += 1
        if not (value >= bound if more_is_better else value <= bound):
            reasons.append(f"{name} {value:.6g}, {'at least' if more_is_better else 'at most'} {bound:g} is admitted")
    if not judged:
        reasons.append(f"its tolerance judges nothing that the judge '{row.judge}' measures")
    if not reasons:
        return ""
    where = ""
    if row.deviation is not None:
        at = list(row.deviation.index)
        where = f" (most at {at}: {row.deviation.found:.6g}, reference {row.deviation.expected:.6g})"
    return f"output '{row.output}': {', '.join(reasons)}{where}"


def _measured(row: OutputParity) -> bool:
    return any(getattr(row, name) is not None for name in _FIGURES)


def _worse(a: OutputParity, b: OutputParity) -> OutputParity:
    """The worst of each figure; the first reason and the greatest deviation stay."""
    figures: dict[str, Any] = {}
    for name, more_is_better in _FIGURES.items():
        values = [value for value in (getattr(a, name), getattr(b, name)) if value is not None]
        figures[name] = None if not values else (min(values) if more_is_better else max(values))
    deviations = [row.deviation for row in (a, b) if row.deviation is not None]
    # A difference that is not a number counts as the greatest.
    greatest = max(deviations, key=lambda d: math.inf if math.isnan(d.size) else d.size, default=None)
    return attrs.evolve(a, **figures, deviation=greatest, why_not=a.why_not or b.why_not)


def _deviation(expected: np.ndarray, found: np.ndarray, example: int) -> Deviation:
    if expected.dtype.kind == "b":
        difference = expected != found
    else:
        wide = np.float32 if expected.dtype.itemsize <= 4 and expected.dtype.kind == "f" else np.float64
        difference = np.subtract(found, expected, dtype=wide)
        np.abs(difference, out=difference)
    at = int(np.argmax(difference))
    index = tuple(int(i) for i in np.unravel_index(at, expected.shape))
    return Deviation(example=example, index=index, expected=float(expected.flat[at]), found=float(found.flat[at]))


def _labels(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Classes on axis 1; the sign of a single one."""
    if expected.ndim < 2 or expected.shape[1] == 1:
        return _overlap(expected > 0, found > 0)
    return _overlap(expected.argmax(axis=1), found.argmax(axis=1))


def _probability(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    return _overlap(expected > 0.5, found > 0.5)


def _masks(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    return _overlap(expected > 0, found > 0)


def _overlap(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Flips and Dice of two label maps, 0 being background."""
    flips = int(np.count_nonzero(expected != found))
    both = int(np.count_nonzero((expected == found) & (expected != 0)))
    total = int(np.count_nonzero(expected)) + int(np.count_nonzero(found))
    return {"flips_ppm": flips / expected.size * 1e6, "dice": 2 * both / total if total else 1.0}


def _embedding(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Vectors on the last axis."""
    a = expected.reshape(-1, expected.shape[-1] if expected.ndim else 1).astype(np.float64)
    b = found.reshape(a.shape).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    # Two vectors of zeros agree; one of zeros beside another does not.
    same = np.all(a == b, axis=1)
    cosine = np.where(same, 1.0, np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0))
    return {"cosine": float(cosine.min()), "relative": _relative(a, b)}


def _logits(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Class logits on the last axis. A changed arg-max without a gap is a tie, so flips are told, not judged, unless
    the tolerance says so."""
    if expected.ndim == 0 or expected.shape[-1] == 1:
        gap = np.abs(_sigmoid(expected) - _sigmoid(found)).max()
        flips = np.count_nonzero((expected > 0) != (found > 0)) / expected.size
    else:
        gap = np.abs(_softmax(expected) - _softmax(found)).max()
        flips = np.mean(expected.argmax(axis=-1) != found.argmax(axis=-1))
    return {"gap": float(gap), "flips_ppm": float(flips) * 1e6}


def _language(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Next-token logits on the last axis: the mean over all positions, in nats, as a factor."""
    total = 0.0
    rows = expected.reshape(-1, expected.shape[-1])
    for reference, engine in zip(rows, found.reshape(rows.shape), strict=True):  # a vocabulary is large
        a, b = _log_softmax(reference), _log_softmax(engine)
        total += float(np.sum(np.exp(a) * (a - b)))
    flips = np.count_nonzero(expected.argmax(axis=-1) != found.argmax(axis=-1)) / len(rows)
    return {"perplexity": math.exp(max(0.0, total / len(rows))), "flips_ppm": flips * 1e6}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide: np.ndarray = logits.astype(np.float64)
    wide -= wide.max()
    wide -= math.log(float(np.exp(wide).sum()))
    return wide


def _values(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    return {"relative": _relative(expected, found)}


def _relative(expected: np.ndarray, found: np.ndarray) -> float:
    wide_a, wide_b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    difference, length = float(np.linalg.norm(wide_b - wide_a)), float(np.linalg.norm(wide_a))
    if length == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / length


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    powers: np.ndarray = np.exp(wide - wide.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


_MEASURES = {
    Judge.LABELS: _labels,
    Judge.PROBABILITY: _probability,
    Judge.MASKS: _masks,
    Judge.EMBEDDING: _embedding,
    Judge.LOGITS: _logits,
    Judge.LANGUAGE: _language,
    Judge.VALUES: _values,
}


def _words(row: OutputParity) -> str:
    if not _measured(row):
        return row.why_not
    words = []
    if row.flips_ppm is not None:
        words.append(f"{row.flips_ppm:.3g} flips/million")
    if row.dice is not None:
        words.append(f"Dice {row.dice:.5f}")
    if row.cosine is not None:
        words.append(f"cosine {row.cosine:.6f}")
    if row.relative is not None:
        words.append(f"relative error {row.relative:.2g}")
    if row.gap is not None:
        words.append(f"gap {row.gap:.2g}")
    if row.perplexity is not None:
        words.append(f"perplexity times {row.perplexity:.5f}")
    return ", ".join(words)
