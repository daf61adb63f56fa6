"""What a backend and an engine are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from omlab.vocabulary import Precision

if TYPE_CHECKING:
    import numpy as np
    import torch

    from omlab.cards import EngineCard
    from omlab.graphs import Graph


@attrs.frozen
class EngineInfo:
    """What ran: kept in every result."""

    backend: str
    version: str
    precision: Precision
    device: str
    #: Execution provider or plugin inside the backend, ``"CPUExecutionProvider"``.
    provider: str = ""
    threads: int | None = None


class Engine(Protocol):
    """A callable from named arrays to named arrays. Not thread-safe unless a backend says so."""

    info: EngineInfo

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph. Inputs must have the graph's dtypes and shapes; outputs are fresh arrays."""
        ...


@attrs.frozen
class Target:
    """One way of running a graph that a backend offers on this machine (or names for another)."""

    precision: Precision
    #: ``"cpu"``, ``"cuda"``, or a named compute capability such as ``"sm_89"`` to build for.
    device: str = "cpu"
    provider: str = ""
    #: Smaller is expected to be faster; the order in which ``auto`` tries what was never tuned.
    rank: int = 100


@attrs.frozen
class Refusal:
    """A way of running that a backend has but does not offer here, and why."""

    precision: Precision
    device: str
    reason: str


class Backend:
    """Base of every contributed engine backend. One instance serves a process."""

    #: The backend runs the torch module itself: :meth:`load_network` is called in place of :meth:`build` and
    #: :meth:`load`, and no ONNX file is made for it.
    takes_network = False
    #: Runs any graph; ``False``: only graphs that name it in :attr:`omlab.graphs.Graph.engines`.
    general = True
    #: :meth:`build_network` makes the artefact from the torch module in place of :meth:`build` from an ONNX file.
    builds_from_network = False

    def __init__(self, card: EngineCard) -> None:
        self.card = card

    @property
    def provider(self) -> str:
        """Provider of targets that are built ahead of time for other hardware."""
        return ""

    def unavailable(self) -> str | None:
        """Why the backend cannot be used here, or ``None``. Must be cheap: no import of the library."""
        from importlib.util import find_spec

        if any(find_spec(module) for module in self.card.modules):
            return None
        return f"{' or '.join(self.card.modules)} is not installed (pip install '{self.card.install}')"

    def version(self) -> str:
        """Version of the library, read from its distribution without importing it."""
        raise TypeError(f"{type(self).__name__} must define version()")

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        """Precisions and devices that can run here."""
        raise TypeError(f"{type(self).__name__} must define targets()")

    def refusals(self, graph: Graph) -> tuple[Refusal, ...]:
        """Precisions and devices of the backend that are not offered here, and why."""
        return ()

    def is_reference(self, target: Target) -> bool:
        """Is an engine for ``target`` the float32 torch reference itself, which nothing needs to be compared with?"""
        return False

    def hardware(self, target: Target) -> str:
        """What of the machine an artefact for ``target`` depends on; part of its key in the store."""
        from omlab.engines import hardware

        if target.device == "cpu":
            return hardware.cpu().key
        if target.device == "cuda":
            return hardware.gpu_key()
        return f"{target.device}-{hardware.platform_key()}"

    def build(self, graph: Graph, onnx: Path, folder: Path, target: Target, **settings: Any) -> None:
        """Turn an ONNX file into the backend's own artefact under ``folder``. The default copies nothing: the
        engine is loaded from ``onnx`` itself."""

    def build_network(self, graph: Graph, network: torch.nn.Module, folder: Path, target: Target) -> None:
        """Turn a torch module in eval mode into the backend's own artefact: files directly under ``folder``, where
        :attr:`builds_from_network` says so."""
        raise TypeError(f"{type(self).__name__} must define build_network()")

    def needs_onnx(self, folder: Path) -> bool:
        """Does :meth:`load` read the ONNX file, or only what :meth:`build` left in ``folder``?"""
        return not any(path for path in folder.iterdir() if path.suffix != ".json")

    def load(self, graph: Graph, onnx: Path, folder: Path, target: Target, *, threads: int | None = None) -> Engine:
        """Load what :meth:`build` made. ``onnx`` exists only where :meth:`needs_onnx` says so."""
        raise TypeError(f"{type(self).__name__} must define load()")

    def moved(self, engine: Engine, folder: Path) -> None:
        """The artefact that ``engine`` was loaded from lies in ``folder`` now; for engines that read it again."""

    def load_network(
        self, graph: Graph, network: torch.nn.Module, target: Target, *, threads: int | None = None
    ) -> Engine:
        """Make an engine of a torch module in eval mode, where :attr:`takes_network` says so."""
        raise TypeError(f"{type(self).__name__} must define load_network()")
