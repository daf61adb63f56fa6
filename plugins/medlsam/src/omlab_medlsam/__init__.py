"""MedSAM, MedLAM and MedLSAM for omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab.adapter import Adapter
    from omlab.cards import AdapterCard, CommandCard, DatasetCard, ModelCard
    from omlab.dataset import Dataset
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    if card.name == "medsam":
        from omlab_medlsam.medsam import MedSam

        return MedSam(card)
    from omlab_medlsam.medlam import MedLam

    return MedLam(card)


@hookimpl
def omlab_adapter(card: AdapterCard) -> Adapter:
    from omlab_medlsam.adapter import MedLsamAdapter

    return MedLsamAdapter(card)


@hookimpl
def omlab_dataset(card: DatasetCard) -> Dataset:
    from omlab_medlsam.dataset import ConfiguredScans

    return ConfiguredScans(card)


@hookimpl
def omlab_command(card: CommandCard) -> click.Command:
    from omlab_medlsam.command import command

    return command
