"""Sequences of a caller as tuples, for fields of values that do not change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def as_tuple(values: Iterable[Any]) -> tuple[Any, ...]:
    """``tuple``, as a converter whose type checkers know what may be given."""
    return tuple(values)
