"""What the core itself contributes: engines, commands and the plain-folder dataset, by the path of any plugin."""

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
    from omlab.builtin.image_folder import ImageFolder

    return ImageFolder(card)
