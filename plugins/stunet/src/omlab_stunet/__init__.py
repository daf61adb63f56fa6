"""STU-Net, segmentation of 104 structures in CT, as a plugin of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab.cards import CommandCard, ModelCard
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab_stunet.model import StuNet

    return StuNet(card)


@hookimpl
def omlab_command(card: CommandCard) -> click.Command:
    from omlab_stunet.import_command import command

    return command
