"""What goes into an engine is what the graph declares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from omlab.errors import EngineError
from omlab.graphs import Graph


def check_inputs(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs in the graph's order, C-contiguous; copied only where they are not.

    Raises
    ------
    EngineError
        A name, dtype, shape or symbolic size is not as declared.
    """
    names = [spec.name for spec in graph.inputs]
    if set(inputs) != set(names):
        raise EngineError(
            f"graph '{graph.name}' takes the inputs {', '.join(names)}, found {', '.join(inputs) or 'none'}"
        )
    sizes: dict[str, int] = {}
    checked = {}
    for spec in graph.inputs:
        array = inputs[spec.name]
        where = f"input '{spec.name}' of graph '{graph.name}'"
        if not isinstance(array, np.ndarray):
            raise EngineError(f"{where} must be a NumPy array, found {type(array).__name__}")
        if array.dtype != np.dtype(spec.dtype):
            raise EngineError(f"{where} must be {spec.dtype}, found {array.dtype}")
        declared = "x".join(str(size) for size in spec.shape)
        if array.ndim != len(spec.shape):
            raise EngineError(f"{where} must have shape {declared}, found {_shape(array)}")
        for wanted, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(wanted, int):
                if wanted != size:
                    raise EngineError(f"{where} must have shape {declared}, found {_shape(array)}")
                continue
            smallest, _, greatest = spec.ranges.get(wanted, (0, 0, size))
            if not smallest <= size <= greatest:
                raise EngineError(f"{where}: '{wanted}' must be {smallest} to {greatest}, found {size}")
            if sizes.setdefault(wanted, size) != size:
                raise EngineError(f"{where}: '{wanted}' is {size} here and {sizes[wanted]} in another input")
        checked[spec.name] = np.ascontiguousarray(array)
    return checked


def check_outputs(graph: Graph, outputs: Mapping[str, np.ndarray]) -> None:
    """Raise :class:`EngineError` unless a network's outputs have the dtypes and fixed sizes that the graph declares."""
    for spec in graph.outputs:
        array = outputs[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(spec.dtype):
            declared = "x".join(str(size) for size in spec.shape)
            raise EngineError(
                f"the network of graph '{graph.name}' gives output '{spec.name}' as {array.dtype} {_shape(array)}, "
                f"{spec.dtype} {declared} is declared"
            )


def check_names(graph: Graph, inputs: list[str], outputs: list[str], what: str) -> None:
    """Raise :class:`EngineError` unless an engine has the names that the graph declares."""
    for kind, found, wanted in (
        ("inputs", inputs, [spec.name for spec in graph.inputs]),
        ("outputs", outputs, [spec.name for spec in graph.outputs]),
    ):
        if set(found) != set(wanted):
            raise EngineError(
                f"{what} has the {kind} {', '.join(found) or 'none'}, graph '{graph.name}' declares {', '.join(wanted)}"
            )


def _shape(array: np.ndarray) -> str:
    return "x".join(str(size) for size in array.shape) or "()"
