"""D-MIM, a model of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import ModelCard
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab_d_mim.model import DMim

    return DMim(card)
