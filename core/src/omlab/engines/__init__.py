"""Engines: graphs turned into the fastest backend that provably agrees with the float32 torch reference.

:func:`provide` gives an admitted engine, :func:`tune` measures all of them and remembers the fastest,
:func:`build_for` builds ahead of time for GPUs that are not here. Nothing is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omlab.cards import EngineCard
    from omlab.engines.ahead import build_for
    from omlab.engines.base import Backend, Engine, EngineInfo, Refusal, Target
    from omlab.engines.parity import ParityRecord
    from omlab.engines.provider import Provided, provide
    from omlab.engines.tuning import TuneRow, tune

_HOMES = {
    "Backend": "base",
    "Engine": "base",
    "EngineInfo": "base",
    "ParityRecord": "parity",
    "Provided": "provider",
    "Refusal": "base",
    "Target": "base",
    "TuneRow": "tuning",
    "build_for": "ahead",
    "provide": "provider",
    "tune": "tuning",
}

#: Card of the core's own manifest -> class of its backend.
_BACKENDS = {
    "onnxruntime": ("omlab.engines.onnxruntime", "OnnxRuntime"),
    "openvino": ("omlab.engines.openvino", "OpenVino"),
    "tensorrt": ("omlab.engines.tensorrt", "TensorRt"),
    "torch": ("omlab.engines.torch", "Torch"),
}

__all__ = [
    "Backend",
    "Engine",
    "EngineInfo",
    "ParityRecord",
    "Provided",
    "Refusal",
    "Target",
    "TuneRow",
    "backend_of",
    "build_for",
    "provide",
    "tune",
]


def backend_of(card: EngineCard) -> Backend:
    """The core's backend behind an engine card. Raises :class:`omlab.errors.UnknownName`."""
    from importlib import import_module

    from omlab.errors import UnknownName

    if card.name not in _BACKENDS:
        raise UnknownName(f"the core has no engine '{card.name}'", remedy=f"It has: {', '.join(sorted(_BACKENDS))}")
    module, name = _BACKENDS[card.name]
    return getattr(import_module(module), name)(card)  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
