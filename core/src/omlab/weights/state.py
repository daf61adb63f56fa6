"""Whether the files of a card are here, told without opening any: what a list shows of it (:mod:`omlab.listing`)."""

from __future__ import annotations

from omlab.cards import CARDS, Asset, Card
from omlab.listing import file_row, is_present, row_of, state_of_row
from omlab.settings import Settings


def state_of(card: Card, settings: Settings) -> str:
    """One of the words of :func:`omlab.listing.state_of_row`."""
    kind = next(kind for kind, form in CARDS.items() if type(card) is form)
    return state_of_row(row_of(kind, card), settings)


def present(asset: Asset, settings: Settings) -> bool:
    """Is a file of the right name there, and all shards of an index? (Verification happens when it is used.)"""
    return is_present(file_row(asset), settings)
