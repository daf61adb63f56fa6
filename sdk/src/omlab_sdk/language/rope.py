"""Rotary position embedding for texts longer than those that a network was trained on: NTK-aware scaling of the base.

The base b of the rotation becomes b * alpha^(d/(d-2)) for heads of size d, so that the slowest rotation spans alpha
times the length while the fastest stays as it was. With a static alpha the new base holds for all texts; the dynamic
rule derives alpha from the length. A cache keeps keys as they were rotated, so one base must serve all tokens of an
answer: it is the base of the greatest length that the answer may reach, and not one that changes on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Contexts that engines are built for, as multiples of the network's own.
LADDER = (2, 4, 8)


def ntk_theta(base: float, head: int, alpha: float) -> float:
    """The base for an ``alpha`` times longer text, of heads with ``head`` values. PULSE-20B: alpha 8 from 10000."""
    return base * alpha ** (head / (head - 2))


def dynamic_alpha(length: int, trained: int, factor: float = 1.0) -> float:
    """Alpha of the dynamic rule for a text of ``length`` tokens; 1 up to the trained length."""
    return max(1.0, factor * length / trained - (factor - 1)) if length > trained else 1.0


def theta_for(config: Any, length: int) -> float:
    """Base for texts of up to ``length`` tokens of a transformers configuration: by its own dynamic rule, else by the
    dynamic rule with factor 1 applied to its own base."""
    parameters = rope_parameters(config)
    factor = float(parameters.get("factor") or 1.0) if parameters["rope_type"] == "dynamic" else 1.0
    alpha = dynamic_alpha(length, config.max_position_embeddings, factor)
    return ntk_theta(float(parameters["rope_theta"]), config.head_dim, alpha)


def rope_parameters(config: Any) -> dict[str, Any]:
    """``rope_theta``, ``rope_type`` and what belongs to it, as transformers 5 writes them, of older files too."""
    found = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    found.setdefault("rope_type", found.pop("type", "default"))
    found.setdefault("rope_theta", getattr(config, "rope_theta", 10000.0))
    return found


def table(theta: float, head: int, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [length, head / 2] of position * theta^(-2i/head), float32."""
    # In float32 throughout, as the library and the builder do: long positions are sensitive to it.
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    frequencies = (np.float32(1) / np.power(np.float32(theta), exponents)).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None]
    return np.cos(angles), np.sin(angles)
