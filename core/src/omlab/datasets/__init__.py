"""Datasets on disk: how they are named and where they lie, whether they are whole, what is in them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omlab.datasets.places import Named, find_place, parse, steps
    from omlab.datasets.statistics import Statistics, gather
    from omlab.datasets.verifying import Verification, verify

_HOMES = {
    "Named": "places", "Statistics": "statistics", "Verification": "verifying", "find_place": "places",
    "gather": "statistics", "parse": "places", "steps": "places", "verify": "verifying",
}  # fmt: skip

__all__ = ["Named", "Statistics", "Verification", "find_place", "gather", "parse", "steps", "verify"]


def __getattr__(name: str) -> Any:
    # Listing asks only where datasets lie; it must not pay for NumPy.
    if name in _HOMES:
        return getattr(import_module(f"omlab.datasets.{_HOMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
