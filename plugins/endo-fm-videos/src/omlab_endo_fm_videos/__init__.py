"""Endo-FM's video sets, datasets of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import DatasetCard
    from omlab.dataset import Dataset


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_endo_fm_videos import dataset

    return dataset.SETS[card.name](card)
