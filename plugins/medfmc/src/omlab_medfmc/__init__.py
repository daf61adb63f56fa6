"""MedFMC: an evaluator, five datasets and a command of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab.cards import CommandCard, DatasetCard, EvaluatorCard
    from omlab.dataset import Dataset
    from omlab.evaluator import Evaluator


@hookimpl
def omlab_evaluator(card: EvaluatorCard) -> Evaluator:
    from omlab_medfmc.evaluator import MedFmc

    return MedFmc(card)


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_medfmc.dataset import MedFmcSet

    return MedFmcSet(card)


@hookimpl
def omlab_command(card: CommandCard) -> click.Command:
    from omlab_medfmc.command import command

    return command
