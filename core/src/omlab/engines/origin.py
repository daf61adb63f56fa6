"""Where engines come from: the ONNX file of a graph and the float32 torch reference, both made once.

Only this module asks a model for its torch network, and only when one of the two is not in the store. The
reference (inputs of the model's examples and what torch gives for them) is kept beside the ONNX file, so that
every later engine is judged without torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from omlab.cards import Variant
from omlab.engines.base import EngineInfo
from omlab.engines.checks import check_outputs
from omlab.engines.parity import Example
from omlab.engines.store import Key, State, Store
from omlab.errors import EngineError, MissingDependency, OmlabError
from omlab.graphs import Graph
from omlab.progress import Listener, Progress
from omlab.vocabulary import Precision

if TYPE_CHECKING:
    import torch

    from omlab.export import Exporter
    from omlab.model import Model

ONNX = "model.onnx"
REFERENCE = "reference.npz"


@attrs.frozen(kw_only=True)
class Subject:
    """The graph of a model that engines are made for, with all that its entries depend on.

    Attributes
    ----------
    files : asset id -> path; asked only when the network has to be built.
    exporter : gives the exporter, or ``None`` where none is installed; called only when an ONNX file is made.
    """

    model: Model
    variant: Variant
    graph: Graph
    files: Mapping[str, Path]
    weights_digest: str
    exporter: Callable[[], Exporter | None] | None
    listener: Listener
    graph_digest: str = attrs.field(init=False)

    @graph_digest.default
    def _digest(self) -> str:
        return self.graph.digest()

    @property
    def label(self) -> str:
        """``"deepbet/net"``."""
        return f"{self.model.card.name}/{self.graph.name}"

    def key(self, kind: str, **fields: str) -> Key:
        """Key of an entry of this graph."""
        shapes = "; ".join(
            f"{spec.name} {spec.dtype} {list(spec.shape)} {dict(spec.ranges)}" for spec in self.graph.inputs
        )
        return Key(
            kind=kind, model=self.model.card.name, variant=self.variant.name, graph=self.graph.name,
            weights_digest=self.weights_digest, graph_digest=self.graph_digest, shapes=shapes, **fields,
        )  # fmt: skip

    def tell(self, what: str) -> None:
        """Tell the listener what is being made."""
        self.listener(Progress(f"{self.label}: {what}", "build"))

    def network(self) -> torch.nn.Module:
        """The torch module with its weights. Raises :class:`EngineError` without torch or where it fails."""
        if find_spec("torch") is None:
            raise EngineError(
                f"no engine of {self.label} was made here yet, and making the first one needs torch, "
                "which is not installed",
                remedy=self.install,
            )
        try:
            return self.model.network(self.graph, self.variant, self.files).eval()
        except MissingDependency as error:
            raise EngineError(error.message, remedy=error.remedy) from error
        except OmlabError:
            raise  # missing or wrong weights: the user must know, and no other engine would do better
        except Exception as error:  # a plugin's code
            raise EngineError(
                f"the network of {self.label} cannot be built: {type(error).__name__}: {first_line(error)}"
            ) from error

    @property
    def install(self) -> str:
        """The command that brings what making engines needs."""
        plugin = self.model.card.plugin or "omlab-sdk"
        plugin = plugin if plugin.startswith("omlab") else f"omlab-{plugin}"
        return f"Install it once with: pip install '{plugin}[convert]'"


class Origin:
    """The ONNX file and the reference of one subject in one store. A failure is raised again without a second try."""

    def __init__(self, subject: Subject, store: Store) -> None:
        self.subject = subject
        self.store = store
        self._failure: EngineError | None = None
        self._network: Any = None

    def onnx(self) -> Path:
        """Path of the verified ONNX file; exported if it is not here. Raises :class:`EngineError`."""
        key = self.subject.key("onnx")
        entry = self.store.find(key)
        if entry is None:
            if self._failure is not None:
                raise self._failure
            try:
                with self.store.lock(key):
                    entry = self.store.find(key)
                    if entry is None:
                        entry = self._export(key)
            except EngineError as error:
                self._failure = error
                raise
        return entry.folder / ONNX

    def examples(self) -> Iterator[Example]:
        """Inputs and float32 torch outputs of the model's examples, one after the other from the file.

        Raises
        ------
        EngineError
            They are not here and cannot be made.
        """
        key = self.subject.key("reference")
        entry = self.store.find(key)
        if entry is None:
            entry = self._reference(key, None)
        with np.load(entry.folder / REFERENCE) as file:
            for index in range(int(file["count"])):
                graph = self.subject.graph
                yield (
                    {spec.name: file[f"{index}/in/{spec.name}"] for spec in graph.inputs},
                    {spec.name: file[f"{index}/out/{spec.name}"] for spec in graph.outputs},
                )

    def inputs(self) -> list[dict[str, np.ndarray]]:
        """Inputs of all examples."""
        return [inputs for inputs, _ in self.examples()]

    def network(self) -> Any:
        """The torch module, with the reference taken and kept. Raises :class:`EngineError`."""
        if self._network is None:
            self.subject.tell("torch network")
            network = self.subject.network()
            if self.store.find(self.subject.key("reference")) is None:
                self._reference(self.subject.key("reference"), network)
            self._network = network
        return self._network

    def _export(self, key: Key) -> Any:
        subject = self.subject
        exporter = subject.exporter() if subject.exporter is not None else None
        if exporter is None:
            raise EngineError(
                f"no engine of {subject.label} was made here yet, and no installed package can write its ONNX file",
                remedy=subject.install,
            )
        subject.tell("torch network")
        network = subject.network()
        # First, so that an exporter that changes the network cannot change what it is judged by.
        if self.store.find(subject.key("reference")) is None:
            self._reference(subject.key("reference"), network)
        with self.store.making(key) as folder, _timed() as seconds:
            subject.tell("ONNX file")
            try:
                exporter.export(network, subject.graph, folder / ONNX)
            except OmlabError:
                raise
            except Exception as error:  # torch's exporter raises whatever the network makes it raise
                raise EngineError(
                    f"{subject.label} cannot be exported to ONNX: {type(error).__name__}: {first_line(error)}"
                ) from error
            if not (folder / ONNX).is_file():
                raise EngineError(f"the exporter wrote no {ONNX} for {subject.label}")
            return self.store.keep(key, folder, state=State.SHARED, seconds=seconds())

    def _reference(self, key: Key, network: Any) -> Any:
        from omlab.engines.torch import Eager
        from omlab.errors import require

        subject = self.subject
        with self.store.lock(key):
            entry = self.store.find(key)
            if entry is not None:
                return entry
            network = subject.network() if network is None else network
            torch = require("torch", needed_for=f"the reference of {subject.label}", install="torch")
            info = EngineInfo("torch", str(torch.__version__), Precision.FLOAT32, "cpu")
            engine = Eager(subject.graph, network, info, torch)
            subject.tell("reference")
            with self.store.making(key) as folder, _timed() as seconds:
                arrays: dict[str, Any] = {}
                count = 0
                for inputs in subject.model.examples(subject.graph, subject.variant):
                    outputs = engine(inputs)
                    check_outputs(subject.graph, outputs)
                    arrays |= {f"{count}/in/{name}": array for name, array in inputs.items()}
                    arrays |= {f"{count}/out/{name}": array for name, array in outputs.items()}
                    count += 1
                if not count:
                    raise EngineError(f"model '{subject.model.card.name}' gives no example for '{subject.graph.name}'")
                np.savez(folder / REFERENCE, count=np.array(count), **arrays)
                return self.store.keep(key, folder, state=State.SHARED, seconds=seconds())


def first_line(error: BaseException) -> str:
    """First line of an error's text that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


@contextlib.contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    import time

    start = time.perf_counter()
    yield lambda: time.perf_counter() - start
