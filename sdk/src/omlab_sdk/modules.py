"""Take the tensors of a whole module that ``torch.save`` pickled, and run none of its code.

Some authors save the module itself and not its state dict. Such a pickle names the classes of their program, and
unpickling it as it is would import and run them. Here every name becomes an inert stand-in, but for the handful that
rebuild a tensor; then the tree of stand-ins is walked for parameters and buffers, as ``state_dict`` would.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError, require

if TYPE_CHECKING:
    import torch

#: What may be called for real: (module, name). All of it only makes tensors and containers.
_TRUSTED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    *(("torch", name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")),
    ("builtins", "set"),
    ("__builtin__", "set"),
}


class _Bag:
    """Stands in for any object; swallows how it is made and keeps its attributes."""

    attributes: Any = None

    def __new__(cls, *_: Any, **__: Any) -> _Bag:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state

    def __call__(self, *_: Any, **__: Any) -> _Bag:
        return _Bag()

    # A pickled list or dictionary of a foreign class fills itself through these.
    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TRUSTED or (module in ("torch", "torch.storage") and name.endswith("Storage")):
            return super().find_class(module, name)
        return type(name.rpartition(".")[2] or "_", (_Bag,), {"__module__": module})


class _Inert:
    """What ``torch.load`` needs of a pickle module."""

    __name__ = "inert"
    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **given: Any) -> Any:
        return _Unpickler(file, **given).load()


def read_module(path: str | Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a pickled module by the names that its ``state_dict`` has.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing or damaged, or what it holds is no module.
    """
    path = Path(path)
    root = _loaded(path)
    found = dict(_entries(root))
    if not found:
        raise WeightsError(
            f"{path}: holds no pickled module, there is {type(root).__name__}",
            remedy="Read a state dict with omlab_sdk.checkpoints",
        )
    return found


def read_beside_objects(path: str | Path, key: str) -> dict[str, torch.Tensor]:
    """The state dict under ``key`` of a file that also holds objects of its author's program, say a whole optimiser.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing or damaged, or has no state dict under ``key``.
    """
    import torch

    path = Path(path)
    root = _loaded(path)
    state = root.get(key) if isinstance(root, Mapping) else None
    found = {str(name): value for name, value in _items(state) if isinstance(value, torch.Tensor)}
    if not found:
        raise WeightsError(f"{path}: holds no state dict under '{key}'", remedy="Is it the file of another model?")
    return found


def _loaded(path: Path) -> Any:
    """What the file holds, with stand-ins for objects."""
    if not path.is_file():
        raise WeightsError(f"{path} does not exist", remedy="Fetch it with omlab pull")
    torch = require("torch", needed_for=f"reading {path.name}", install="omlab-sdk[torch]")
    try:
        # Safe, since the unpickler above is the one that is used: it imports and calls nothing but what it trusts.
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Inert())
    except Exception as error:  # a damaged pickle raises anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or no file of torch.save: {first}", remedy="Fetch it again") from None


def _entries(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Like ``state_dict``: parameters, buffers that persist, then the modules within."""
    import torch

    if not isinstance(node, _Bag) or not isinstance(node.attributes, Mapping):
        return
    held = node.attributes
    passing = held.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(held.get(kind)):
            if isinstance(value, torch.Tensor) and not (kind == "_buffers" and name in passing):
                yield f"{prefix}{name}", value.detach()
    for name, child in _items(held.get("_modules")):
        yield from _entries(child, f"{prefix}{name}.")


def _items(found: Any) -> list[tuple[Any, Any]]:
    return list(found.items()) if isinstance(found, (dict, OrderedDict)) else []
