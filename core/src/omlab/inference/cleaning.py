"""What may be done to a finished label map: removing what hangs together with nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import require


def keep_largest(
    labels: NDArray[np.unsignedinteger[Any]],
    groups: Sequence[int | Sequence[int]],
    *,
    voxel_mm3: float = 1.0,
    least_mm3: Mapping[int | tuple[int, ...], float] | None = None,
) -> NDArray[Any]:
    """Remove all but the largest connected component of each group, in place, as nnU-Net does.

    Parameters
    ----------
    groups : a label, or labels that are taken together; in order.
    voxel_mm3 : volume of a voxel.
    least_mm3 : group -> components at least so large stay too.

    Voxels hang together by their faces. Components that are as large as the largest stay.

    Raises
    ------
    omlab.errors.MissingDependency
        connected-components-3d is not installed.
    """
    library = require("cc3d", needed_for="looking for connected components", install="connected-components-3d")
    for group in groups:
        members = (group,) if isinstance(group, int) else tuple(group)
        components = library.connected_components(np.isin(labels, members), connectivity=6)
        counts = np.bincount(components.ravel())
        if len(counts) < 2:
            continue
        counts[0] = 0
        remove = counts < counts.max()
        least = (least_mm3 or {}).get(group if isinstance(group, int) else members)
        if least is not None:
            remove &= counts * voxel_mm3 < least
        remove[0] = False
        labels[remove[components]] = 0
    return labels
