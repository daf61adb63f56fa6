"""Hooks that a plugin may implement, checked by pluggy when the plugin is loaded.

Each hook is given a card of the plugin's own manifest and returns the object behind it. The core's engines,
commands and datasets come through the same hooks (:mod:`omlab.builtin`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from omlab import cards
    from omlab.adapter import Adapter
    from omlab.dataset import Dataset
    from omlab.engines.base import Backend
    from omlab.evaluator import Evaluator
    from omlab.export import Exporter
    from omlab.model import Model

hookspec = pluggy.HookspecMarker("omlab")
hookimpl = pluggy.HookimplMarker("omlab")


@hookspec(firstresult=True)
def omlab_model(card: cards.ModelCard) -> Model | None:
    """The model behind ``card``."""


@hookspec(firstresult=True)
def omlab_dataset(card: cards.DatasetCard) -> Dataset | None:
    """The dataset behind ``card``."""


@hookspec(firstresult=True)
def omlab_adapter(card: cards.AdapterCard) -> Adapter | None:
    """The adapter behind ``card``."""


@hookspec(firstresult=True)
def omlab_evaluator(card: cards.EvaluatorCard) -> Evaluator | None:
    """The evaluator behind ``card``."""


@hookspec(firstresult=True)
def omlab_engine(card: cards.EngineCard) -> Backend | None:
    """The engine backend behind ``card``."""


@hookspec(firstresult=True)
def omlab_command(card: cards.CommandCard) -> click.Command | None:
    """The click command behind ``card``."""


@hookspec(firstresult=True)
def omlab_exporter(card: cards.ExporterCard) -> Exporter | None:
    """What writes a network as an ONNX file."""
