"""Classification metrics, an evaluator of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import EvaluatorCard
    from omlab.evaluator import Evaluator


@hookimpl
def omlab_evaluator(card: EvaluatorCard) -> Evaluator:
    from omlab_classification.evaluator import ClassificationEvaluator

    return ClassificationEvaluator(card)
