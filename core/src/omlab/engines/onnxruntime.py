"""ONNX Runtime: the processor, and CUDA and TensorRT where the installed build has them."""

from __future__ import annotations

from collections.abc import Mapping
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

CPU = "CPUExecutionProvider"
#: Provider -> (precision, rank) on a GPU.
_GPU = {
    "TensorrtExecutionProvider": ((Precision.FLOAT16, 15), (Precision.FLOAT32, 20)),
    "CUDAExecutionProvider": ((Precision.FLOAT32, 30),),
}


class OnnxRuntime(Backend):
    """Loads the ONNX file as it is; nothing of its own is stored."""

    def version(self) -> str:
        from importlib.metadata import PackageNotFoundError, version

        for distribution in ("onnxruntime-gpu", "onnxruntime"):
            try:
                return version(distribution)
            except PackageNotFoundError:
                continue
        return str(self._library().__version__)

    def targets(self, graph: Graph) -> tuple[Target, ...]:
        found = [Target(Precision.FLOAT32, "cpu", CPU, rank=70)]
        if hardware.gpus():
            here = self._library().get_available_providers()
            for provider, ways in _GPU.items():
                if provider in here:
                    found += [Target(precision, "cuda", provider, rank) for precision, rank in ways]
        return tuple(found)

    def refusals(self, graph: Graph) -> tuple[Refusal, ...]:
        if not hardware.gpus():
            return (Refusal(Precision.FLOAT32, "cuda", "no NVIDIA GPU here"),)
        here = self._library().get_available_providers()
        return tuple(
            Refusal(ways[0][0], "cuda", f"the installed onnxruntime has no {provider}")
            for provider, ways in _GPU.items()
            if provider not in here
        )

    def load(self, graph: Graph, onnx: Path, folder: Path, target: Target, *, threads: int | None = None) -> Session:
        library = self._library()
        # Does nothing on Linux; on Windows builds of the library report usage unless told not to.
        library.disable_telemetry_events()
        threads = threads or usable_cpus()
        settings = library.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # The arena without the pattern of the first run: on a 3D U-Net at 192 cubed half the peak memory of the
        # defaults, and no slower.
        settings.enable_mem_pattern = False
        options: dict[str, Any] = {}
        if target.provider == "TensorrtExecutionProvider":
            options["trt_fp16_enable"] = target.precision is Precision.FLOAT16
        if target.provider == "CUDAExecutionProvider":
            options["use_tf32"] = 0  # float32 means float32
        try:
            session = library.InferenceSession(str(onnx), settings, providers=[(target.provider, options)])
        except Exception as error:  # the library raises a dozen types of its own
            raise EngineError(f"onnxruntime cannot load {onnx.name}: {str(error).splitlines()[0]}") from error
        session.disable_fallback()
        if target.provider not in session.get_providers():
            raise EngineError(f"onnxruntime could not start {target.provider}, it gave {session.get_providers()}")
        check_names(
            graph, [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()], f"{onnx.name}"
        )
        info = EngineInfo(
            self.card.name, self.version(), target.precision, target.device, target.provider,
            threads if target.device == "cpu" else None,
        )  # fmt: skip
        return Session(graph, session, info, library)

    def _library(self) -> Any:
        return require("onnxruntime", needed_for="the ONNX Runtime engine", install=self.card.install)


class Session:
    """An engine of ONNX Runtime. Thread-safe on the processor."""

    def __init__(self, graph: Graph, session: Any, info: EngineInfo, library: Any) -> None:
        self.info = info
        self._graph = graph
        self._session = session
        self._library = library
        self._names = [spec.name for spec in graph.outputs]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph; outputs are fresh arrays."""
        checked = check_inputs(self._graph, inputs)
        try:
            if self.info.device == "cpu":
                found = self._session.run(self._names, checked)
            else:
                found = self._on_device(checked)
        except Exception as error:  # the library raises a dozen types of its own
            raise EngineError(f"onnxruntime failed in '{self._graph.name}': {str(error).splitlines()[0]}") from error
        return dict(zip(self._names, found, strict=True))

    def _on_device(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Inputs go over once, results stay on the device until all are there."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, self._library.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in self._names:
            binding.bind_output(name, "cuda", 0)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]
