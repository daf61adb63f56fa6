"""TensorRT and TensorRT for RTX: one API, one module.

TensorRT for RTX builds with no GPU at hand for named compute capabilities; loading always needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from omlab.engines import hardware
from omlab.engines.base import Backend, EngineInfo, Refusal, Target
from omlab.engines.checks import check_inputs, check_names
from omlab.errors import EngineError, require
from omlab.graphs import Graph
from omlab.vocabulary import Precision

PLAN = "engine.plan"
#: Compute capabilities that TensorRT for RTX builds for.
RTX_CAPABILITIES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


class TensorRt(Backend):
    """Builds and loads serialised engines. Full TensorRT is preferred where both are installed."""

    def version(self) -> str:
        from importlib.metadata import PackageNotFoundError, version

        names = ("tensorrt_rtx",) if self._rtx else ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
        for distribution in names:
            try:
                return f"{'rtx-' if self._rtx else ''}{version(distribution)}"
            except PackageNotFoundError:
                continue
        return str(self._library().__version__)

    @property
    def _rtx(self) -> bool:
        return find_spec("tensorrt") is None

    @property
    def provider(self) -> str:
        return self._name

    @property
    def _name(self) -> str:
        return "tensorrt_rtx" if self._rtx else "tensorrt"

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        return () if self._refused() else (Target(Precision.FLOAT32, "cuda", self._name, rank=10),)

    def refusals(self, graph: Graph) -> tuple[Refusal, ...]:
        reason = self._refused()
        return (Refusal(Precision.FLOAT32, "cuda", reason),) if reason else ()

    def _refused(self) -> str | None:
        if not hardware.gpus():
            return "no NVIDIA GPU here"
        gpu = hardware.gpus()[0]
        if self._rtx and gpu.sm not in RTX_CAPABILITIES:
            return f"tensorrt_rtx does not serve {gpu.name} ({gpu.sm})"
        return None

    def hardware(self, target: Target) -> str:
        # An engine of TensorRT for RTX fits every GPU of its capability, so one that was built elsewhere is found.
        if self._rtx and target.device == "cuda" and hardware.gpus():
            return f"{hardware.gpus()[0].sm}-{hardware.platform_key()}"
        return super().hardware(target)

    def build(self, graph: Graph, onnx: Path, folder: Path, target: Target, **settings: Any) -> None:
        """Build ``engine.plan``. ``target.device`` is ``"cuda"`` for the GPU here, or ``"sm_89"`` and the like."""
        library = self._library()
        log = _log(library)
        builder = library.Builder(log)
        if builder is None:
            raise EngineError(f"{self._name} cannot start: {log.last()}")
        typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = library.OnnxParser(network, log)
        if not parser.parse_from_file(str(onnx)):
            reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise EngineError(f"{self._name} cannot parse {onnx.name}: {reasons or log.last()}")
        config = builder.create_builder_config()
        config.clear_flag(library.BuilderFlag.TF32)  # float32 means float32
        self._aim(library, config, target)
        profile = builder.create_optimization_profile()
        for spec in graph.inputs:
            if spec.symbolic:
                profile.set_shape(spec.name, *(_sized(spec, which) for which in range(3)))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{self._name} cannot build '{graph.name}' for {target.device}: {log.last()}")
        with open(folder / PLAN, "wb") as file:
            file.write(plan)

    def _aim(self, library: Any, config: Any, target: Target) -> None:
        if not self._rtx:
            if target.device != "cuda":
                raise EngineError(
                    f"tensorrt builds for the GPU at hand only, not for {target.device}",
                    remedy="Uninstall tensorrt and use tensorrt_rtx: pip install 'omlab[tensorrt-rtx]'",
                )
            return
        sm = hardware.gpus()[0].sm if target.device == "cuda" and hardware.gpus() else target.device
        if sm not in RTX_CAPABILITIES:
            raise EngineError(f"tensorrt_rtx cannot build for '{sm}'", remedy=f"It can: {', '.join(RTX_CAPABILITIES)}")
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(getattr(library.ComputeCapability, sm.replace("sm_", "SM")), 0):
            raise EngineError(f"tensorrt_rtx refused to build for '{sm}'")

    def load(self, graph: Graph, onnx: Path, folder: Path, target: Target, *, threads: int | None = None) -> Plan:
        """Load ``engine.plan``. Raises :class:`EngineError` without a GPU, or with one of another capability."""
        plan = folder / PLAN
        made_for = "a GPU" if target.device == "cuda" else target.device
        if not hardware.gpus():
            raise EngineError(
                f"the {self._name} engine of '{graph.name}' is built for {made_for} and there is no NVIDIA GPU here",
                remedy="Run it on a machine with such a GPU, or use --device cpu",
            )
        gpu = hardware.gpus()[0]
        if target.device not in ("cuda", gpu.sm):
            raise EngineError(
                f"the {self._name} engine of '{graph.name}' is built for {made_for}, "
                f"the GPU here is {gpu.sm} ({gpu.name})",
                remedy=f"Build one for {gpu.sm}",
            )
        from omlab.engines.cuda import Device

        library = self._library()
        device = Device(self.card.install)
        log = _log(library)
        runtime = library.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise EngineError(f"{self._name} cannot load {plan.name}: {log.last()}")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == library.TensorIOMode.INPUT]
        check_names(graph, inputs, [n for n in names if n not in inputs], plan.name)
        info = EngineInfo(self.card.name, self.version(), target.precision, "cuda", f"{self._name} on {gpu.name}")
        return Plan(graph, engine, info, library, device, keep=(log, runtime))

    def _library(self) -> Any:
        return require(self._name, needed_for="the TensorRT engine", install=self.card.install)


class Plan:
    """An engine of TensorRT. Not thread-safe: it has one execution context and one stream."""

    def __init__(self, graph: Graph, engine: Any, info: EngineInfo, library: Any, device: Any, keep: Any) -> None:
        self.info = info
        self._graph = graph
        self._engine = engine
        self._library = library
        self._device = device
        self._keep = keep  # the library frees what Python forgets
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"no memory on the GPU for '{graph.name}'")

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph; outputs are fresh arrays."""
        checked = check_inputs(self._graph, inputs)
        self._device.enter()
        for name, array in checked.items():
            if not self._context.set_input_shape(name, array.shape):
                raise EngineError(
                    f"input '{name}' of graph '{self._graph.name}' has the shape {array.shape}, not built for"
                )
            self._context.set_tensor_address(name, self._device.upload(name, array))
        outputs = {}
        for spec in self._graph.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            dtype = self._library.nptype(self._engine.get_tensor_dtype(spec.name))
            outputs[spec.name] = np.empty(shape, dtype)
            self._context.set_tensor_address(spec.name, self._device.buffer(spec.name, outputs[spec.name].nbytes))
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise EngineError(f"TensorRT failed in '{self._graph.name}'")
        for name, array in outputs.items():
            self._device.download(name, array)
        self._device.wait()
        return outputs


def _sized(spec: Any, which: int) -> tuple[int, ...]:
    """Shape of an input with the smallest (0), usual (1) or greatest (2) size of each symbolic dimension."""
    sizes = []
    for size in spec.shape:
        if isinstance(size, str) and size not in spec.ranges:
            raise EngineError(
                f"input '{spec.name}' has no range for '{size}'",
                remedy="TensorRT needs one: give it in the graph's TensorSpec",
            )
        sizes.append(size if isinstance(size, int) else spec.ranges[size][which])
    return tuple(sizes)


def _log(library: Any) -> Any:
    """A logger that keeps messages instead of printing them."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= library.ILogger.Severity.ERROR:
                self.messages.append(message.strip().splitlines()[0] if message.strip() else "")

        def last(self) -> str:
            return self.messages[-1] if self.messages else "no reason given"

    return Log()
