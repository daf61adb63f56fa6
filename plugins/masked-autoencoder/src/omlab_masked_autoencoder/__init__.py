"""Masked-autoencoder pre-training, an adapter of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.adapter import Adapter
    from omlab.cards import AdapterCard


@hookimpl
def omlab_adapter(card: AdapterCard) -> Adapter:
    from omlab_masked_autoencoder.adapter import MaskedAutoencoding

    return MaskedAutoencoding(card)
