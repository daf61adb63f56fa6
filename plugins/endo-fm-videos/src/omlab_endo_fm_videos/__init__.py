"""Endo-FM's video sets, datasets of omlab, and the measure of its detection task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import DatasetCard, EvaluatorCard
    from omlab.dataset import Dataset
    from omlab.evaluator import Evaluator


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_endo_fm_videos import dataset

    return dataset.SETS[card.name](card)


@hookimpl
def omlab_evaluator(card: EvaluatorCard) -> Evaluator:
    from omlab_endo_fm_videos.frame_detection import FrameDetection

    return FrameDetection(card)
