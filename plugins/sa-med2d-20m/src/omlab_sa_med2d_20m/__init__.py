"""SA-Med2D-20M, a dataset of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import DatasetCard
    from omlab.dataset import Dataset


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_sa_med2d_20m.dataset import SaMed2D

    return SaMed2D(card)
