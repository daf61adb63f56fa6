"""What the core itself contributes: engines, commands and plain folders as datasets, by the path of any plugin."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab import cards
    from omlab.dataset import Dataset
    from omlab.engines.base import Backend


@hookimpl
def omlab_command(card: cards.CommandCard) -> click.Command:
    return import_module(f"omlab.cli.{card.name}").command  # type: ignore[no-any-return]


@hookimpl
def omlab_engine(card: cards.EngineCard) -> Backend:
    from omlab.engines import backend_of

    return backend_of(card)


@hookimpl
def omlab_dataset(card: cards.DatasetCard) -> Dataset:
    # A layout's module is called as the layout, its class likewise: nnunet-raw, nnunet_raw, NnunetRaw.
    module = import_module(f"omlab.builtin.{card.name.replace('-', '_')}")
    behind = getattr(module, "".join(word.capitalize() for word in card.name.split("-")))
    return behind(card)  # type: ignore[no-any-return]
