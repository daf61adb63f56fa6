"""``omlab score fitness SCORES DMS``: two tables, or two folders of them paired by file name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from omlab import charts
from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair, Resampled
from omlab.progress import Progress
from omlab.report import Report, Value
from omlab_fitness.assays import Assay, column_of, draws, join, spearman, values_of


class FitnessEvaluator(Evaluator):
    """Rank correlation of every assay, and their mean."""

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Scores and measurements, files or folders.

        Raises
        ------
        omlab.errors.InputError
            A table is damaged, or does not fit its partner.
        omlab.errors.UsageError
            There are not two paths, or one is a file and one a folder.
        """
        if len(files) != 2:
            raise UsageError(
                f"fitness takes scores and measurements, found {len(files)} paths", remedy="omlab score fitness S DMS"
            )

        def assays() -> Iterator[Assay]:
            for name, scores, fitness in _pairs(*files):
                self.listener(Progress(name, "score", unit="assays"))
                predicted, measured = (
                    column_of(scores, options["prediction"]),
                    column_of(fitness, options["measurement"]),
                )
                yield join(name, predicted, measured, partial=options["partial"])

        return self._report(assays(), options)

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """Scores of a model beside the measurements of a dataset, an assay a pair: tables with a column ``mutant``.

        Raises
        ------
        omlab.errors.InputError
            A table lacks a column, or does not fit its partner.
        """

        def assays() -> Iterator[Assay]:
            for pair in pairs:
                try:
                    predicted = values_of(pair.name, pair.prediction, options["prediction"])
                    measured = values_of(pair.name, pair.reference, options["measurement"])
                    assay = join(pair.name, predicted, measured, partial=options["partial"])
                except InputError as error:
                    pair.refuse(error)
                    continue
                yield assay

        return self._report(assays(), options)

    def resampled(self, reports: Sequence[Mapping[str, Any]], *, rounds: int, seed: int) -> Mapping[str, Resampled]:
        """The average over assays drawn with replacement."""
        tables = [
            {row["assay"]: row["spearman"] for row in report.get("cases", ()) if isinstance(row["spearman"], float)}
            for report in reports
        ]
        shared = [name for name in tables[0] if all(name in table for table in tables)]
        if not shared:
            return {}
        values = np.array([[table[name] for name in shared] for table in tables])
        chosen = np.random.default_rng(seed).integers(0, len(shared), (rounds, len(shared)))
        found = Resampled(values.mean(axis=1), values[:, chosen].mean(axis=2), len(shared))
        return {"average/spearman": found}

    def _report(self, assays: Iterable[Assay], options: Mapping[str, Any]) -> Report:
        if options["rounds"] < 0:
            raise UsageError("fitness takes rounds of 0 or more")
        summary: dict[str, Value] = {}
        cases: list[dict[str, Any]] = []
        warnings: list[str] = []
        for assay in assays:
            row = _row(assay, options)
            cases.append(row)
            summary[f"{assay.name}/spearman"] = Value(
                value=row["spearman"], low=row["low"], high=row["high"], n=row["mutants"], undefined=assay.undefined
            )
            if assay.undefined:
                warnings.append(f"{assay.name}: {assay.undefined}; it is left out of the average")
            if assay.left_out:
                what = "mutants are in only one of the files and were left out"
                warnings.append(f"{assay.name}: {assay.left_out} {what}")
        if not cases:
            return Report(evaluator=self.card.name, title=self.card.title, summary={}, options=dict(options))
        values = np.array([row["spearman"] for row in cases if row["spearman"] is not None])
        low, high = _interval(_means(values, options)) if len(values) > 2 else (None, None)
        average = float(values.mean()) if len(values) else None
        if len(cases) > 1:
            why = "" if len(values) else "no assay has a correlation"
            mean = Value(value=average, low=low, high=high, n=len(values), undefined=why)
            summary = {"average/spearman": mean} | summary
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=cases, warnings=warnings,
            options={**options, "ties": "mean rank", "interval": "percentile bootstrap, 95 %"},
            environment={
                "plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
            machine={
                "assays": {row["assay"]: {k: v for k, v in row.items() if k != "assay"} for row in cases},
                "average": average,
            },
            illustration=lambda title: _draw(title, summary),
        )  # fmt: skip


def _draw(title: str, summary: Mapping[str, Value]) -> Any:
    rows = [charts.Figure(name.removesuffix("/spearman"), *_known(value)) for name, value in summary.items()]
    note = f"the first {charts.ROWS} of {len(rows)}" if len(rows) > charts.ROWS else ""
    return charts.sheet(title, [charts.figures("Spearman's rho and its 95 % interval", rows)], note)


def _known(value: Value) -> tuple[float, float, float]:
    return tuple(math.nan if v is None else v for v in (value.value, value.low, value.high))  # type: ignore[return-value]


def _row(assay: Assay, options: Mapping[str, Any]) -> dict[str, Any]:
    value, low, high = None, None, None
    if not assay.undefined:
        value = float(spearman(assay.predicted, assay.measured))
        low, high = _interval(draws(assay, rounds=options["rounds"], seed=options["seed"]))
    return {
        "assay": assay.name, "spearman": value, "low": low, "high": high,
        "mutants": len(assay.mutants), "multiple": assay.multiple,
    }  # fmt: skip


def _interval(found: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    defined = found[~np.isnan(found)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _means(values: NDArray[np.float64], options: Mapping[str, Any]) -> NDArray[np.float64]:
    generator = np.random.default_rng(options["seed"])
    chosen = generator.integers(0, len(values), (options["rounds"], len(values)))
    return np.asarray(values[chosen].mean(axis=1))


def _pairs(scores: Path, fitness: Path) -> Iterator[tuple[str, Path, Path]]:
    for path in (scores, fitness):
        if not path.exists():
            raise InputError(f"{path}: does not exist, a table of mutants was expected")
    if scores.is_dir() != fitness.is_dir():
        raise UsageError(f"{scores} and {fitness}: expected two files or two folders")
    if not scores.is_dir():
        yield scores.stem, scores, fitness
        return
    ours, theirs = ({path.stem: path for path in sorted(folder.glob("*.csv"))} for folder in (scores, fitness))
    unpaired = sorted(ours.keys() ^ theirs.keys())
    if unpaired:
        raise InputError(
            f"{scores} and {fitness}: {len(unpaired)} tables have no partner of their name, first '{unpaired[0]}'"
        )
    if not ours:
        raise InputError(f"{scores} holds no CSV file")
    for name, path in ours.items():
        yield name, path, theirs[name]
