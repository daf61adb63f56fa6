"""Sums of scores, plane by plane: in float32, or in 16 bits where a volume is too wide for the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOP = np.float32(65535)


class FloatPlane:
    """Sums [rows, classes, columns] of one plane, float32."""

    #: Bytes a score.
    BYTES = 4.0

    def __init__(self, rows: int, classes: int, columns: int) -> None:
        self._sums = np.zeros((rows, classes, columns), np.float32)

    def add(self, rows: slice, columns: slice, scores: NDArray[np.float32]) -> None:
        """Add ``scores`` [rows, classes, columns]."""
        self._sums[rows, :, columns] += scores

    def add_background(self, rows: slice, columns: slice, scores: NDArray[np.float32]) -> None:
        """Add ``scores`` [rows, columns] to class 0."""
        self._sums[rows, 0, columns] += scores

    def scores(self) -> NDArray[np.float32]:
        """[rows, classes, columns]."""
        return self._sums


class CompactPlane:
    """Like :class:`FloatPlane` in half the memory: a voxel's sums as 16-bit shares of the greatest of them.

    A share is off by at most 8e-6 of the greatest each time something is added, so the class of the greatest score
    changes only where two are that close. Scores must not be negative.
    """

    BYTES = 2.05

    def __init__(self, rows: int, classes: int, columns: int) -> None:
        self._shares = np.zeros((rows, classes, columns), np.uint16)
        self._unit = np.zeros((rows, 1, columns), np.float32)

    def add(self, rows: slice, columns: slice, scores: NDArray[np.float32]) -> None:
        """Add ``scores`` [rows, classes, columns]."""
        shares, unit = self._shares[rows, :, columns], self._unit[rows, :, columns]
        total = shares.astype(np.float32)
        total *= unit
        total += scores
        self._keep(total, shares, unit)

    def add_background(self, rows: slice, columns: slice, scores: NDArray[np.float32]) -> None:
        """Add ``scores`` [rows, columns] to class 0."""
        shares, unit = self._shares[rows, :, columns], self._unit[rows, :, columns]
        total = shares.astype(np.float32)
        total *= unit
        total[:, 0] += scores
        self._keep(total, shares, unit)

    def _keep(self, total: NDArray[np.float32], shares: NDArray[np.uint16], unit: NDArray[np.float32]) -> None:
        np.divide(total.max(axis=1, keepdims=True), _TOP, out=unit)
        np.divide(total, np.maximum(unit, np.finfo(np.float32).tiny), out=total)
        total += np.float32(0.5)
        np.copyto(shares, total, casting="unsafe")

    def scores(self) -> NDArray[np.float32]:
        """[rows, classes, columns] float32."""
        found: NDArray[np.float32] = self._shares.astype(np.float32)
        found *= self._unit
        return found


Sums: Any = FloatPlane | CompactPlane
