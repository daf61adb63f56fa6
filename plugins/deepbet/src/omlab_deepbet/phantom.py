"""A synthetic head, for comparing and timing engines where no scan is at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Name, half axes (right, anterior, superior) as parts of the volume's half size, brightness: from outside in.
_SHELLS = (
    ((0.80, 0.92, 0.88), 0.95),  # scalp
    ((0.74, 0.86, 0.82), 0.10),  # skull
    ((0.69, 0.81, 0.76), 0.22),  # liquor
    ((0.65, 0.77, 0.72), 0.55),  # grey matter
    ((0.58, 0.70, 0.64), 0.85),  # white matter
)
_VENTRICLE = (0.10, 0.25, 0.12)


def head(size: int = 128, seed: int = 0) -> NDArray[np.float32]:
    """A T1-weighted head of nested ellipsoids with a folded cortex, ventricles, a smooth bias field and noise.

    [i, j, k] in RAS orientation, ``size`` voxels a side, brightness 0 to about 1.2. The same for the same arguments.
    """
    generator = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y, z = axis[:, None, None], axis[None, :, None], axis[None, None, :] - np.float32(0.08)
    folds = 0.02 * np.sin(19 * x) * np.sin(17 * y + 1) * np.sin(21 * z + 2)
    voxels = np.zeros((size, size, size), np.float32)
    for number, (half, brightness) in enumerate(_SHELLS):
        radius = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2 + (z / half[2]) ** 2)
        voxels[radius + (folds if number > 2 else 0) < 1] = brightness
    for side in (-0.14, 0.14):
        a, b, c = _VENTRICLE
        voxels[((x - side) / a) ** 2 + (y / b) ** 2 + ((z - 0.05) / c) ** 2 < 1] = 0.2
    voxels *= 1 + 0.15 * x - 0.1 * y + 0.1 * z
    voxels += 0.03 * np.abs(generator.standard_normal(voxels.shape, dtype=np.float32))
    return voxels
