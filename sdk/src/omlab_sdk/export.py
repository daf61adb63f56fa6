"""torch to ONNX: symbolic dimensions, external data for large networks, checked before it counts."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import EngineError, require
from omlab.graphs import Graph

if TYPE_CHECKING:
    import torch

#: Understood by onnxruntime, OpenVINO and TensorRT alike.
OPSET = 18
#: A protobuf cannot hold 2 GiB; larger networks keep their tensors in a file beside.
EXTERNAL_BYTES = 1_500_000_000


class TorchOnnxExporter:
    """The exporter ``torch-onnx``."""

    def export(self, network: torch.nn.Module, graph: Graph, path: Path) -> None:
        """Write ``path`` (and ``<path>.data`` beside it where the network is large), whole or not at all.

        Raises
        ------
        MissingDependency
            torch, onnx or onnxscript is not installed.
        EngineError
            The network cannot be exported, or what came out is not what ``graph`` declares.
        """
        for module in ("torch", "onnx", "onnxscript"):
            require(module, needed_for="exporting to ONNX", install="omlab-sdk[torch]")
        # A folder of its own keeps the file and its data together until both are complete.
        work = path.with_name(f".{os.getpid()}-{path.name}.export")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            self._write(network, graph, work / path.name)
            for made in sorted(work.iterdir(), reverse=True):  # data first: a file without its data must not appear
                os.replace(made, path.with_name(made.name))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _write(self, network: torch.nn.Module, graph: Graph, path: Path) -> None:
        import torch

        size = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
        dimensions: dict[str, Any] = {}
        for spec in graph.inputs:
            for name in spec.symbolic:
                low, _, high = spec.ranges.get(name, (1, 1, 2**31 - 1))
                dimensions.setdefault(name, torch.export.Dim(name, min=low, max=high))
        shapes = tuple({a: dimensions[d] for a, d in enumerate(s.shape) if isinstance(d, str)} for s in graph.inputs)
        # A symbolic dimension traced at 1 would be taken for a constant, so it is traced at 2 or more.
        example = tuple(
            torch.zeros(
                spec.concrete({n: max(2, spec.ranges.get(n, (1, 1, 1))[1]) for n in spec.symbolic}),
                dtype=getattr(torch, spec.dtype),
            )
            for spec in graph.inputs
        )
        try:
            with _ONE_AT_A_TIME, _quiet(), torch.no_grad():
                torch.onnx.export(
                    network.eval(),
                    example,
                    str(path),
                    dynamo=True,
                    verbose=False,
                    opset_version=OPSET,
                    input_names=[spec.name for spec in graph.inputs],
                    output_names=[spec.name for spec in graph.outputs],
                    dynamic_shapes=shapes if dimensions else None,
                    external_data=size > EXTERNAL_BYTES,
                )
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineError(
                f"graph '{graph.name}' cannot be exported to ONNX: {first}",
                remedy="Run again with --debug to see the exporter's report",
            ) from error
        check(path, graph)


#: torch's exporter keeps its state in the process; engines of two models may be made on threads of their own.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about torchvision and its own deprecations; none of it helps the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(before)


def check(path: Path, graph: Graph) -> None:
    """Is the file valid ONNX, with the tensors that ``graph`` declares? Raises
    :class:`omlab.errors.EngineError`."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
        model = onnx.load(str(path), load_external_data=False)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise EngineError(f"graph '{graph.name}': the exported file is invalid: {str(error).splitlines()[0]}") from None
    taken = {name for spec in graph.inputs for name in spec.symbolic}
    for what, specs, values in (
        ("input", graph.inputs, model.graph.input),
        ("output", graph.outputs, model.graph.output),
    ):
        found = {value.name: value.type.tensor_type for value in values}
        for spec in specs:
            if spec.name not in found:
                raise EngineError(
                    f"graph '{graph.name}': the exported file has no {what} '{spec.name}', it has {', '.join(found)}",
                    remedy="The network must take and return what the graph declares, in order",
                )
            tensor = found[spec.name]
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            if kind != spec.dtype:
                raise EngineError(f"graph '{graph.name}': {what} '{spec.name}' is {kind}, declared {spec.dtype}")
            sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
            wrong = len(sizes) != len(spec.shape) or any(
                isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(sizes, spec.shape, strict=False)
            )
            if wrong:
                raise EngineError(
                    f"graph '{graph.name}': {what} '{spec.name}' has the shape {sizes}, declared {list(spec.shape)}"
                )
            # An axis that no input has (the classes of a user's own classifier) is fixed by the weights.
            frozen = [n for n, size in zip(spec.shape, sizes, strict=True) if n in taken and isinstance(size, int)]
            if frozen:
                raise EngineError(
                    f"graph '{graph.name}': dimension '{frozen[0]}' of {what} '{spec.name}' became a constant",
                    remedy="Avoid int(), .item() and Python branches on shapes in forward()",
                )
