"""torch: the reference, and the last resort. Runs the network itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from omlab.engines import hardware
from omlab.engines.base import Backend, EngineInfo, Refusal, Target
from omlab.engines.checks import check_inputs
from omlab.errors import EngineError, require
from omlab.graphs import Graph
from omlab.memory import usable_cpus
from omlab.vocabulary import Precision


class Torch(Backend):
    """Runs the torch module in eager mode."""

    takes_network = True

    def version(self) -> str:
        from importlib.metadata import version

        return version("torch")

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        found = [Target(Precision.FLOAT32, "cpu", "eager", rank=90)]
        if self._no_cuda() is None:
            found.append(Target(Precision.FLOAT32, "cuda", "eager", rank=35))
        return tuple(found)

    def refusals(self, graph: Graph) -> tuple[Refusal, ...]:
        reason = self._no_cuda()
        return (Refusal(Precision.FLOAT32, "cuda", reason),) if reason else ()

    def is_reference(self, target: Target) -> bool:
        return target.device == "cpu" and target.precision is Precision.FLOAT32

    def _no_cuda(self) -> str | None:
        if not hardware.gpus():
            return "no NVIDIA GPU here"
        return "the installed torch is built for the CPU only" if self.version().endswith("+cpu") else None

    def load_network(self, graph: Graph, network: Any, target: Target, *, threads: int | None = None) -> Eager:
        torch = require("torch", needed_for="the torch engine", install=self.card.install)
        if target.device == "cuda" and not torch.cuda.is_available():
            raise EngineError("torch finds no usable NVIDIA GPU", remedy="Install a torch that is built for CUDA")
        network = network.to(target.device).eval()
        threads = (threads or usable_cpus()) if target.device == "cpu" else None
        info = EngineInfo(self.card.name, self.version(), target.precision, target.device, "eager", threads)
        return Eager(graph, network, info, torch)


class Eager:
    """An engine that is a torch module. Not thread-safe: torch's number of threads belongs to the process."""

    def __init__(self, graph: Graph, network: Any, info: EngineInfo, torch: Any) -> None:
        self.info = info
        self._graph = graph
        self._network = network
        self._torch = torch

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph; outputs are fresh arrays."""
        torch = self._torch
        checked = check_inputs(self._graph, inputs)
        before = torch.get_num_threads()
        try:
            if self.info.threads and self.info.threads != before:
                torch.set_num_threads(self.info.threads)
            with torch.inference_mode():
                # torch warns at arrays that it could write to but must not.
                given = [torch.from_numpy(a if a.flags.writeable else a.copy()) for a in checked.values()]
                found = self._network(*(tensor.to(self.info.device) for tensor in given))
                outputs = found if isinstance(found, tuple | list) else (found,)
                # An output may be a view of an input or of a weight, which the caller must not get.
                arrays = [output.cpu().numpy().copy() for output in outputs]
        except RuntimeError as error:
            raise EngineError(f"torch failed in '{self._graph.name}': {str(error).splitlines()[0]}") from error
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
        if len(arrays) != len(self._graph.outputs):
            raise EngineError(
                f"the network of graph '{self._graph.name}' gives {len(arrays)} outputs, "
                f"{len(self._graph.outputs)} are declared"
            )
        return {spec.name: array for spec, array in zip(self._graph.outputs, arrays, strict=True)}
