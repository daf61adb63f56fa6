"""PathoDuet, a model and a command of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab.cards import CommandCard, ModelCard
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab_pathoduet.model import PathoDuet

    return PathoDuet(card)


@hookimpl
def omlab_command(card: CommandCard) -> click.Command:
    from omlab_pathoduet.command import command

    return command
