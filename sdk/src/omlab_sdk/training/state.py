"""What an interrupted training goes on from: weights that learn, optimiser, place, history."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.errors import WeightsError
from omlab.files import whole

if TYPE_CHECKING:
    from torch import Tensor, nn

STATE = "state.pt"
BEST = "best.pt"


def learning(network: nn.Module) -> dict[str, Tensor]:
    """What a training changes: parameters that learn, and buffers (statistics of norms), by name."""
    own = network.state_dict(keep_vars=True)
    return {
        name: tensor.detach()
        for name, tensor in own.items()
        if getattr(tensor, "requires_grad", False) or not _parameter(tensor)
    }


def _parameter(tensor: Tensor) -> bool:
    from torch import nn

    return isinstance(tensor, nn.Parameter)


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the processor."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def put_back(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors into the network, in place."""
    import torch

    own = network.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def fingerprint(network: nn.Module, settings: Mapping[str, Any], batches: int, more: str) -> str:
    """Digest of all that must be the same for a state to be gone on from."""
    shapes = {name: list(tensor.shape) for name, tensor in learning(network).items()}
    described = json.dumps([shapes, settings, batches, more], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a state whole or not at all."""
    import torch

    with whole(path) as temporary:
        torch.save(dict(content), temporary)


def load(path: Path) -> dict[str, Any] | None:
    """A state; ``None`` where there is none. Raises :class:`omlab.errors.WeightsError` for a damaged one."""
    import torch

    if not path.is_file():
        return None
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged: {first}", remedy="Remove it and begin the training anew") from None
