"""ProteinGym, a dataset of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import DatasetCard
    from omlab.dataset import Dataset


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_proteingym.dataset import ProteinGym

    return ProteinGym(card)
