"""Nearest neighbours and prototypes, two adapters of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.adapter import Adapter
    from omlab.cards import AdapterCard


@hookimpl
def omlab_adapter(card: AdapterCard) -> Adapter:
    from omlab_nearest.adapter import Neighbours, Prototypes

    return Neighbours(card) if card.name == "nearest-neighbours" else Prototypes(card)
