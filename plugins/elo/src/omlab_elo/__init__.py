"""Elo tournaments of language models: an evaluator and a command of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab.cards import CommandCard, EvaluatorCard
    from omlab.evaluator import Evaluator


@hookimpl
def omlab_evaluator(card: EvaluatorCard) -> Evaluator:
    from omlab_elo.evaluator import EloEvaluator

    return EloEvaluator(card)


@hookimpl
def omlab_command(card: CommandCard) -> click.Command:
    from omlab_elo.command import command

    return command
