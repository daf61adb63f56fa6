"""``omlab score fitness SCORES DMS``: two tables, or two folders of them paired by file name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair
from omlab.report import Report, Value
from omlab.weights.store import sha256_of
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
        digests: dict[str, str] = {}

        def assays() -> Iterator[Assay]:
            for name, scores, fitness in _pairs(*files):
                predicted, measured = (
                    column_of(scores, options["prediction"]),
                    column_of(fitness, options["measurement"]),
                )
                digests.update(
                    {f"scores/{scores.name}": sha256_of(scores), f"fitness/{fitness.name}": sha256_of(fitness)}
                )
                yield join(name, predicted, measured, partial=options["partial"])

        return self._report(assays(), options, digests)

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """Scores of a model beside the measurements of a dataset, an assay a pair: tables with a column ``mutant``.

        Raises
        ------
        omlab.errors.InputError
            A table lacks a column, or does not fit its partner.
        """

        def assays() -> Iterator[Assay]:
            for pair in pairs:
                yield join(
                    pair.name,
                    values_of(pair.name, pair.prediction, options["prediction"]),
                    values_of(pair.name, pair.reference, options["measurement"]),
                    partial=options["partial"],
                )

        return self._report(assays(), options, {})

    def _report(self, assays: Iterable[Assay], options: Mapping[str, Any], digests: Mapping[str, str]) -> Report:
        if options["rounds"] < 0:
            raise UsageError("fitness takes rounds of 0 or more")
        summary: dict[str, Value] = {}
        cases: list[dict[str, Any]] = []
        warnings: list[str] = []
        for assay in assays:
            row = _row(assay, options)
            cases.append(row)
            summary[f"{assay.name}/spearman"] = Value(
                value=row["spearman"], low=row["low"], high=row["high"], n=row["mutants"]
            )
            if assay.left_out:
                what = "mutants are in only one of the files and were left out"
                warnings.append(f"{assay.name}: {assay.left_out} {what}")
        if not cases:
            return Report(evaluator=self.card.name, title=self.card.title, summary={}, options=dict(options))
        values = np.array([row["spearman"] for row in cases])
        low, high = _interval(_means(values, options)) if len(cases) > 2 else (None, None)
        average = float(values.mean())
        if len(cases) > 1:
            summary = {"average/spearman": Value(value=average, low=low, high=high, n=len(cases))} | summary
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=cases, warnings=warnings,
            options={**options, "ties": "mean rank", "interval": "percentile bootstrap, 95 %"},
            environment={
                "plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__,
                "scipy": scipy.__version__, "files": dict(digests),
            },
            machine={
                "assays": {row["assay"]: {k: v for k, v in row.items() if k != "assay"} for row in cases},
                "average": average,
            },
        )  # fmt: skip


def _row(assay: Assay, options: Mapping[str, Any]) -> dict[str, Any]:
    low, high = _interval(draws(assay, rounds=options["rounds"], seed=options["seed"]))
    return {
        "assay": assay.name, "spearman": float(spearman(assay.predicted, assay.measured)), "low": low, "high": high,
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
