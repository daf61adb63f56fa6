"""The evaluator: class probabilities beside the truth, to a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair, Resampled
from omlab.report import Report, Value
from omlab.results import Classification
from omlab_classification.files import read_pairs
from omlab_classification.metrics import overall
from omlab_classification.pictures import draw

#: How far the probabilities of classes that exclude each other may sum from 1.
_SUM = 0.01
#: Rounds of a comparison; each takes every metric of both sides anew.
ROUNDS = 1000
_UNDEFINED = {
    "auc": "no class has both cases with it and cases without",
    "average_precision": "no class has a case",
    "kappa": "all cases are of one class and were called so",
    "quadratic_kappa": "all cases are of one class and were called so",
}


class ClassificationEvaluator(Evaluator):
    """``omlab score classification PREDICTIONS.csv REFERENCES.csv``, and ``omlab evaluate`` of classifiers."""

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """Macro values with bootstrap intervals over the cases, and values of every class.

        Raises
        ------
        omlab.errors.InputError
            Classes differ between cases, a probability is no number in 0..1, or there is no case.
        omlab.errors.UsageError
            There is no bin, or a negative number of rounds.
        """
        if options["bins"] < 1 or options["rounds"] < 0:
            raise UsageError("classification takes 1 bin or more, and rounds of 0 or more")
        names, probabilities, truth, exclusive, classes = _collect(pairs)
        settings = {"exclusive": exclusive, "threshold": options["threshold"], "bins": options["bins"]}
        found, each = overall(probabilities, truth, **settings)
        draws = _bootstrap(probabilities, truth, settings, options)
        summary = {name: _value(name, value, draws, len(names)) for name, value in found.items()}
        warnings = _warnings(classes, truth, probabilities, exclusive)
        for c, name in enumerate(classes):
            for metric, values in each.items():
                why = "" if not math.isnan(values[c]) else "the class is absent, or every case is of it"
                number = None if why else float(values[c])
                summary[f"{name}/{metric}"] = Value(value=number, n=int(truth[:, c].sum()), undefined=why)
        rows = [
            {
                "case": name,
                "answer": classes[int(probabilities[i].argmax())] if exclusive else None,
                "reference": [classes[c] for c in np.flatnonzero(truth[i])],
                **({"accuracy": float(truth[i, probabilities[i].argmax()])} if exclusive else {}),
                "probabilities": dict(zip(classes, map(float, probabilities[i]), strict=True)),
            }
            for i, name in enumerate(names)
        ]
        conventions = {
            "macro": "mean over the classes in which the metric is defined",
            "interval": "percentile bootstrap over cases, 95 %; none below ten cases",
        }
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=rows, warnings=warnings,
            options={**options, **conventions, "exclusive": exclusive},
            environment={"plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__},
            illustration=lambda title: draw(title, classes, probabilities, truth, each["auc"], **settings),
        )  # fmt: skip

    def resampled(self, reports: Sequence[Mapping[str, Any]], *, rounds: int, seed: int) -> Mapping[str, Resampled]:
        """Every macro value over cases drawn with replacement, at most :data:`ROUNDS` times.

        Raises
        ------
        omlab.errors.InputError
            The reports are of other classes, or say of one case that it is of different ones.
        """
        tables = [{row["case"]: row for row in report.get("cases", ())} for report in reports]
        shared = [name for name in tables[0] if all(name in table for table in tables)]
        if not shared:
            return {}
        classes = list(tables[0][shared[0]]["probabilities"])
        for name in shared:
            rows = [table[name] for table in tables]
            if any(set(row["probabilities"]) != set(classes) for row in rows):
                raise InputError(f"{name}: the reports have other classes, {', '.join(classes)} in the first")
            if any(set(row["reference"]) != set(rows[0]["reference"]) for row in rows):
                raise InputError(f"{name}: the reports say that it is of different classes")
        truth = np.array([[c in tables[0][name]["reference"] for c in classes] for name in shared])
        given = np.array([[[t[name]["probabilities"][c] for c in classes] for name in shared] for t in tables])
        options = [report["options"] for report in reports]
        settings = [{key: own[key] for key in ("exclusive", "threshold", "bins")} for own in options]
        generator = np.random.default_rng(seed)
        drawn: list[list[dict[str, float]]] = [[] for _ in reports]
        for _ in range(min(rounds, ROUNDS)):
            chosen = generator.integers(0, len(shared), len(shared))
            for place, setting in enumerate(settings):
                drawn[place].append(overall(given[place][chosen], truth[chosen], **setting)[0])
        whole = [overall(given[place], truth, **setting)[0] for place, setting in enumerate(settings)]
        return {
            name: Resampled(
                np.array([found[name] for found in whole]),
                np.array([[one[name] for one in rows] for rows in drawn]),
                len(shared),
            )
            for name in whole[0]
            if all(name in found for found in whole)
        }

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Two CSV files (:func:`omlab_classification.files.read_pairs`)."""
        if len(files) != 2:
            raise UsageError(
                f"classification takes predictions and references, found {len(files)} paths",
                remedy="omlab score classification PREDICTIONS.csv REFERENCES.csv",
            )
        return self.score(read_pairs(*files), options)


def _collect(pairs: Iterable[Pair]) -> tuple[list[str], Any, Any, bool, tuple[str, ...]]:
    names: list[str] = []
    given: list[Any] = []
    wanted: list[Any] = []
    classes: tuple[str, ...] | None = None
    exclusive = True
    for pair in pairs:
        try:
            values, wanted_row = _checked(pair, classes)
        except InputError as error:
            pair.refuse(error)
            continue
        classes = classes or pair.prediction.classes  # type: ignore[attr-defined]
        exclusive &= pair.prediction.exclusive  # type: ignore[attr-defined]
        names.append(pair.name)
        given.append(values)
        wanted.append(wanted_row)
    if classes is None:
        raise InputError("there is no case to score")
    probabilities, truth = np.array(given), np.array(wanted)
    if exclusive and not (truth.sum(axis=1) == 1).all():
        odd = names[int(np.flatnonzero(truth.sum(axis=1) != 1)[0])]
        raise InputError(f"{odd}: classes exclude each other, but its reference has none or several")
    return names, probabilities, truth, exclusive, classes


def _checked(pair: Pair, classes: tuple[str, ...] | None) -> tuple[Any, Any]:
    """Probabilities of a case and which classes it is of, both [classes]; in the order of ``classes`` if given."""
    a, b = pair.prediction, pair.reference
    if not isinstance(a, Classification) or not isinstance(b, Classification):
        raise InputError(f"{pair.name}: prediction and reference must be classifications")
    classes = classes or a.classes
    if a.classes != classes or set(b.classes) != set(classes):
        raise InputError(
            f"{pair.name}: classes of prediction and reference differ: {', '.join(a.classes)} and "
            f"{', '.join(b.classes)}, expected {', '.join(classes)}"
        )
    values = np.asarray(a.probabilities, np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1 + 1e-6:
        raise InputError(f"{pair.name}: probabilities lie between 0 and 1, found {values.tolist()}")
    truth = np.asarray(b.probabilities)[[b.classes.index(c) for c in classes]] > 0.5
    if a.exclusive and b.exclusive and truth.sum() != 1:
        raise InputError(f"{pair.name}: classes exclude each other, but its reference has none or several")
    return values, truth


def _bootstrap(probabilities: Any, truth: Any, settings: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Metric -> [rounds] values of cases drawn with replacement."""
    count = len(truth)
    if count < 10 or not options["rounds"]:
        return {}
    generator = np.random.default_rng(options["seed"])
    rows = []
    for _ in range(options["rounds"]):
        drawn = generator.integers(0, count, count)
        rows.append(overall(probabilities[drawn], truth[drawn], **settings)[0])
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _value(name: str, value: float, draws: Mapping[str, Any], count: int) -> Value:
    if math.isnan(value):
        return Value(value=None, n=count, undefined=_UNDEFINED.get(name, "it is defined for no class"))
    defined = draws[name][~np.isnan(draws[name])] if name in draws else np.empty(0)
    if not len(defined):
        return Value(value=value, n=count)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Value(value=value, low=float(low), high=float(high), n=count)


def _warnings(classes: Sequence[str], truth: Any, probabilities: Any, exclusive: bool) -> list[str]:
    told = []
    absent = [name for name, n in zip(classes, truth.sum(axis=0), strict=True) if not n]
    if absent:
        told.append(f"no case is of {', '.join(absent)}: left out of the macro values that need one")
    sums = probabilities.sum(axis=1)
    off = int((np.abs(sums - 1) > _SUM).sum())
    if exclusive and off:
        told.append(f"the probabilities of {off} cases do not sum to 1; they are taken as they are")
    return told
