"""MedBench, an evaluator and a dataset of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import DatasetCard, EvaluatorCard
    from omlab.dataset import Dataset
    from omlab.evaluator import Evaluator


@hookimpl
def omlab_evaluator(card: EvaluatorCard) -> Evaluator:
    from omlab_medbench.evaluator import MedBench

    return MedBench(card)


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_medbench.dataset import MedBenchQuestions

    return MedBenchQuestions(card)
