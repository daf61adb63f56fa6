"""What contributors to omlab build with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    import click

    from omlab.cards import CommandCard, EngineCard, ExporterCard
    from omlab.engines.base import Backend
    from omlab.export import Exporter


@hookimpl
def omlab_exporter(card: ExporterCard) -> Exporter:
    from omlab_sdk.export import TorchOnnxExporter

    return TorchOnnxExporter()


@hookimpl
def omlab_engine(card: EngineCard) -> Backend:
    if card.name == "onnxruntime-nbits":
        from omlab_sdk.language.nbits import OnnxRuntimeNbits

        return OnnxRuntimeNbits(card)
    from omlab_sdk.language.genai import OnnxRuntimeGenAi

    return OnnxRuntimeGenAi(card)


@hookimpl
def omlab_command(card: CommandCard) -> click.Command:
    from importlib import import_module

    return import_module(f"omlab_sdk.{card.name}_command").command  # type: ignore[no-any-return]
