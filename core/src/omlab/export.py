"""What an exporter is: the bridge from a torch module to an ONNX file, contributed by the sdk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from omlab.graphs import Graph


class Exporter(Protocol):
    """Writes the ONNX file of a graph."""

    def export(self, network: torch.nn.Module, graph: Graph, path: Path) -> None:
        """Write ``path`` (and its external data beside it) and check it. Raises
        :class:`omlab.errors.EngineError` where the network cannot be exported."""
        ...
