"""Whether the files of a card are here, told without opening any."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec

from omlab.cards import Asset, Card, DatasetCard, EngineCard, ModelCard
from omlab.errors import WeightsError
from omlab.settings import Settings
from omlab.vocabulary import SourceKind
from omlab.weights.keys import key_of


def state_of(card: Card, settings: Settings) -> str:
    """``here``, ``part`` (some variants), ``pull`` (can be fetched), ``by hand``, ``none`` (needs none);
    ``installed`` or ``missing`` for the library of an engine; empty where the question makes no sense."""
    if isinstance(card, EngineCard):
        return "installed" if any(find_spec(module) for module in card.modules) else "missing"
    if isinstance(card, DatasetCard):
        if card.takes_path:
            if not card.obtain:
                return "yours"
            from omlab.datasets.places import find_place

            if find_place(card, settings) is not None:
                return "here"
            if not card.files:
                return "by hand"
        sets = [card.files]
    elif isinstance(card, ModelCard):
        sets = [variant.weights for variant in card.variants]
    else:
        return ""
    if not any(sets):
        return "none"
    here = [all(present(asset, settings) for asset in assets) for assets in sets]
    if all(here):
        return "here"
    if any(here):
        return "part"
    by_hand = all(any(a.source is SourceKind.BY_HAND for a in assets) for assets in sets if assets)
    return "by hand" if by_hand else "pull"


def present(asset: Asset, settings: Settings) -> bool:
    """Is a file of the right name there? (Verification happens when it is used.)"""
    for root in (*settings.shared_roots, settings.assets_root):
        path = root / key_of(asset) / asset.filename
        if path.is_file():
            if not asset.index:
                return True
            from omlab.weights.index import shards_of

            with suppress(WeightsError):  # told when it is used
                if all(shard.is_file() for shard in shards_of(path)):
                    return True
    return False
