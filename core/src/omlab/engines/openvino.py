"""OpenVINO on the processor, in float32 and bfloat16."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from omlab.engines import hardware
from omlab.engines.base import Backend, EngineInfo, Refusal, Target
from omlab.engines.checks import check_inputs, check_names
from omlab.errors import EngineError, require
from omlab.graphs import Graph
from omlab.memory import usable_cpus
from omlab.vocabulary import Precision

BLOB = "engine.blob"
#: A compiled model is stored only for ONNX files up to this many bytes. It halves the loading time of a small
#: network; for a large one it is slower than compiling from the memory-mapped ONNX file (2.3 s against 1.0 s for
#: a ViT-L) and costs as much disk again.
STORED_UP_TO = 256 * 2**20
#: Left where convolutions are ours that :func:`omlab.engines.openvino_winograd.take_over` leaves without ``every``.
EVERY = "every-convolution"
#: Difference of two ways to compute the same, of the largest value.
_SAME = {Precision.FLOAT32: 1e-4, Precision.BFLOAT16: 5e-2}
#: Raised when what is compiled changes, so that stored engines are made again.
_REVISION = 3
_HINT = {Precision.FLOAT32: "f32", Precision.BFLOAT16: "bf16"}
_NO_BFLOAT16 = "this processor has no bfloat16 arithmetic (avx512_bf16 or amx_bf16)"


class OpenVino(Backend):
    """Compiles the ONNX file; the compiled model of a small network is stored."""

    def version(self) -> str:
        from importlib.metadata import version

        own = f"omlab.{_REVISION}" + (f".numba.{hardware.winograd()}" if hardware.winograd() else "")
        return f"{version('openvino')}+{own}"

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        found = [Target(Precision.FLOAT32, "cpu", "CPU", rank=50)]
        if hardware.cpu().bfloat16:
            rank = 40 if hardware.cpu().fast_bfloat16 else 60
            found.append(Target(Precision.BFLOAT16, "cpu", "CPU", rank=rank))
        return tuple(found)

    def refusals(self, graph: Graph) -> tuple[Refusal, ...]:
        return () if hardware.cpu().bfloat16 else (Refusal(Precision.BFLOAT16, "cpu", _NO_BFLOAT16),)

    def build(self, graph: Graph, onnx: Path, folder: Path, target: Target, **settings: Any) -> None:
        size = sum(path.stat().st_size for path in (onnx, onnx.with_name(onnx.name + ".data")) if path.exists())
        if size > STORED_UP_TO:
            return
        compiled, own = self._compile(onnx, target, usable_cpus())
        if _takes_over(target) and self._every_agrees(onnx, target, compiled):
            (folder / EVERY).touch()
            return
        if own:
            return  # a file cannot hold operations of ours
        with open(folder / BLOB, "wb") as file:
            file.write(compiled.export_model().getbuffer())

    def needs_onnx(self, folder: Path) -> bool:
        return not (folder / BLOB).exists()

    def load(self, graph: Graph, onnx: Path, folder: Path, target: Target, *, threads: int | None = None) -> Compiled:
        threads = threads or usable_cpus()
        blob = folder / BLOB
        if blob.exists():
            compiled = self._import(blob, target, threads)
        else:
            compiled = self._compile(onnx, target, threads, every=(folder / EVERY).exists())[0]
        check_names(
            graph,
            [port.get_any_name() for port in compiled.inputs],
            [port.get_any_name() for port in compiled.outputs],
            blob.name if blob.exists() else onnx.name,
        )
        info = EngineInfo(self.card.name, self.version(), target.precision, "cpu", "CPU", threads)
        return Compiled(graph, compiled, info, self._library())

    def _every_agrees(self, onnx: Path, target: Target, compiled: Any) -> bool:
        """Is there more to take over of the network, and does it give the same then? Looked at once, on noise."""
        from omlab.engines.openvino_rewriting import split_upsampled
        from omlab.engines.openvino_winograd import has_more

        model = self._library().Core().read_model(str(onnx))
        split_upsampled(model)
        if not has_more(model) or any(port.get_partial_shape().is_dynamic for port in compiled.inputs):
            return False
        noise = np.random.default_rng(0)
        given = [noise.standard_normal(port.get_shape(), np.float32) for port in compiled.inputs]
        found = [compiled(given), self._compile(onnx, target, usable_cpus(), every=True)[0](given)]
        pairs = [[one[place] for one in found] for place in range(len(compiled.outputs))]
        return all(np.abs(a - b).max() <= _SAME[target.precision] * np.abs(a).max() for a, b in pairs)

    def _compile(self, onnx: Path, target: Target, threads: int, *, every: bool = False) -> tuple[Any, int]:
        """The compiled model, and how many of its operations are ours; ``every`` of
        :func:`omlab.engines.openvino_winograd.take_over`."""
        from omlab.engines.openvino_rewriting import split_upsampled

        core = self._library().Core()
        try:
            model = core.read_model(str(onnx))
            split_upsampled(model)
            own = 0
            if _takes_over(target):
                from omlab.engines.openvino_winograd import take_over

                own = take_over(model, threads, every=every)
            return core.compile_model(model, "CPU", _config(target, threads)), own
        except Exception as error:  # the library raises plain RuntimeError and types of its own
            raise EngineError(f"openvino cannot compile {onnx.name}: {_line(error)}") from error

    def _import(self, blob: Path, target: Target, threads: int) -> Any:
        library = self._library()
        try:
            tensor = library.tensor_from_file(str(blob))
            return library.Core().import_model(tensor, "CPU", _config(target, threads))
        except Exception as error:  # the library raises plain RuntimeError and types of its own
            raise EngineError(f"openvino cannot import {blob.name}: {_line(error)}") from error

    def _library(self) -> Any:
        with _no_telemetry():
            return require("openvino", needed_for="the OpenVINO engine", install=self.card.install)


class Compiled:
    """An engine of OpenVINO. Not thread-safe: it has one request."""

    def __init__(self, graph: Graph, compiled: Any, info: EngineInfo, library: Any) -> None:
        self.info = info
        self._graph = graph
        self._library = library
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._outputs = {port.get_any_name(): port for port in compiled.outputs}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph; outputs are fresh arrays."""
        checked = check_inputs(self._graph, inputs)
        fresh: dict[str, np.ndarray] = {}
        try:
            for spec in self._graph.outputs:
                port = self._outputs[spec.name]
                if port.get_partial_shape().is_static:
                    # The network writes into our array: nothing is copied afterwards.
                    fresh[spec.name] = np.empty(tuple(port.get_shape()), port.get_element_type().to_dtype())
                    self._request.set_tensor(port, self._library.Tensor(fresh[spec.name], shared_memory=True))
            self._request.infer(checked, share_inputs=True, share_outputs=True)
            return {
                spec.name: fresh[spec.name]
                if spec.name in fresh
                else np.array(self._request.get_tensor(self._outputs[spec.name]).data)
                for spec in self._graph.outputs
            }
        except Exception as error:  # the library raises plain RuntimeError and types of its own
            raise EngineError(f"openvino failed in '{self._graph.name}': {_line(error)}") from error


def _takes_over(target: Target) -> bool:
    """Are convolutions of ours faster than the library's?"""
    return bool(hardware.winograd()) and not (target.precision == Precision.BFLOAT16 and hardware.cpu().tiles)


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Import without the package that reports every import over the network, unasked: the library has a stand-in for
    where it is absent. That report also forks this process while other threads compute, after which they may wait for
    ever. Who has imported the library before has chosen for themselves."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the import system's own way to say that it is absent
    try:
        yield
    finally:
        sys.modules.pop(name, None)


def _config(target: Target, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINT[target.precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Two pinned processes would share a core while others idle.
        "ENABLE_CPU_PINNING": False,
    }


def _line(error: Exception) -> str:
    """The line of a message that tells most: the library puts places in its source before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
