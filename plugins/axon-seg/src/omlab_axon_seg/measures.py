"""Sizes of voxels as users give them, figures of axons in their units, and the time of the network."""

from __future__ import annotations

import numpy as np

from omlab.errors import UsageError

Spacing = tuple[float, float, float]


def spacing_of(text: str) -> Spacing | None:
    """Micrometres (z, y, x) from ``"5,1.6,1.6"``. Raises :class:`omlab.errors.UsageError`."""
    if not text:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        z = y = x = float("nan")
    if not all(0 < s < float("inf") for s in (z, y, x)):
        raise UsageError(f"option 'voxel' is three lengths in micrometres, z,y,x: 5,1.6,1.6; found '{text}'")
    return z, y, x


def figures(voxels: int, total: int, length: float, spacing: Spacing | None) -> dict[str, float]:
    """What was found, in numbers; in millimetres where the size of voxels is known.

    Parameters
    ----------
    voxels, total : of axons, and in all.
    length : of centre lines, in micrometres, or in voxels without ``spacing``.
    spacing : micrometres a voxel, (z, y, x).
    """
    found = {"axon_voxels": float(voxels), "axon_share": voxels / total}
    if spacing is None:
        return found | {"length_voxels": length, "length_density_per_voxel2": length / total}
    voxel_mm3 = float(np.prod(spacing)) / 1e9
    return found | {
        "axon_volume_mm3": voxels * voxel_mm3, "length_mm": length / 1e3,
        "length_density_mm_per_mm3": length / 1e3 / (total * voxel_mm3),
    }  # fmt: skip
