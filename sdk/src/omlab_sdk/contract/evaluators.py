"""Checks of evaluators and datasets."""

from __future__ import annotations

import json

import attrs
import numpy as np

from omlab.cards import EvaluatorCard
from omlab.evaluator import Pair
from omlab.geometry import Geometry
from omlab.loading import options_of
from omlab.results import Classification, Label, Result, Segmentation
from omlab.vocabulary import Kind, OutputKind
from omlab_sdk.contract.base import Broken, Skipped, Subject


def _pairs(kind: OutputKind) -> list[tuple[Result, Result]]:
    """A perfect and a wrong answer of this kind."""
    if kind is OutputKind.SEGMENTATION:
        labels = np.zeros((20, 22, 18), np.uint8)
        labels[5:12, 6:14, 4:11] = 1
        wrong = np.roll(labels, 4, axis=0)
        geometry = Geometry(labels.shape, np.diag([1.0, 1.0, 2.0, 1.0]))
        structures = (Label(value=1, name="thing"),)
        truth = Segmentation(labels=labels, structures=structures, geometry=geometry)
        return [(truth, truth), (attrs.evolve(truth, labels=wrong), truth)]
    if kind is OutputKind.CLASSIFICATION:
        names = ("a", "b")
        truth = Classification(classes=names, probabilities=np.array([1, 0], np.float32))
        wrong = Classification(classes=names, probabilities=np.array([0.2, 0.8], np.float32))
        return [(truth, truth), (wrong, truth)]
    return []


def scores(subject: Subject) -> str:
    """An evaluator scores, tells a perfect answer from a wrong one, and its report is JSON."""
    told = []
    for card in subject.cards(Kind.EVALUATOR):
        assert isinstance(card, EvaluatorCard)
        evaluator = subject.registry.load(Kind.EVALUATOR, card.name)
        options = options_of(card, {})
        for kind in card.takes:
            reports = []
            for prediction, truth in _pairs(kind):
                report = evaluator.score([Pair(name="case", prediction=prediction, reference=truth)], options)
                json.dumps(report.as_json(), allow_nan=False)
                if not report.summary:
                    raise Broken(f"evaluator '{card.name}' gives no figure for {kind}", "Fill Report.summary")
                reports.append({name: value.value for name, value in report.summary.items()})
            if not reports:
                raise Skipped(f"there are no sample answers of kind {kind} yet")
            if reports[0] == reports[1]:
                raise Broken(f"evaluator '{card.name}' gives a perfect and a wrong {kind} the same figures")
            told.append(f"{card.name}: {len(reports[0])} figures of a {kind}")
    return "; ".join(told)
