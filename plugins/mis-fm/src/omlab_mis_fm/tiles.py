"""Windows as PyMIC lays them, and scores of a whole volume stitched from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from omlab.inference.sliding import Network, plan, stream

Array = NDArray[np.float32]
Shape = tuple[int, ...]
#: Of the demonstration settings, in voxels (D, H, W).
WINDOW, STRIDE = (64, 128, 128), (32, 64, 64)


def fitted(shape: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> tuple[Shape, Shape]:
    """Window and stride reduced to a volume of ``shape`` where they are larger."""
    a = tuple(min(n, w) for n, w in zip(shape, window, strict=True))
    return a, tuple(min(n, s) for n, s in zip(shape, stride, strict=True))


def starts_of(shape: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> tuple[Shape, ...]:
    """First voxels of the windows along each axis: every ``stride`` voxels up to the end of the volume, those that
    reach past it moved back. So the last place is taken several times, and counts as often. A window that covers the
    volume is alone."""
    if all(w >= n for n, w in zip(shape, window, strict=True)):
        return ((0,),) * len(shape)
    return tuple(
        tuple(min(s, max(0, n - w)) for s in range(0, n, step))
        for n, w, step in zip(shape, window, stride, strict=True)
    )


def logits_of(
    volume: Array, network: Network, window: Sequence[int] = WINDOW, stride: Sequence[int] = STRIDE, *, tta: int = 0,
    batch: int = 1,
) -> Array:  # fmt: skip
    """Averaged logits [classes, D, H, W] of a volume [channels, D, H, W].

    Parameters
    ----------
    network : windows [n, channels, d, h, w] to logits [n, classes, d, h, w].
    tta : 0 as it is; 1 the mean over the whole volume as it is, flipped along H, along W and along both; 2 as it is,
        with D and W exchanged, and with D and H exchanged.
    """
    ways: list[Callable[[Array], Array]] = [lambda x: x]
    if tta == 1:
        ways += [lambda x, axes=axes: np.flip(x, axes) for axes in ((-2,), (-1,), (-2, -1))]  # type: ignore[misc]
    elif tta == 2:
        ways += [lambda x, axes=axes: np.swapaxes(x, *axes) for axes in ((1, 3), (1, 2))]  # type: ignore[misc]
    elif tta:
        raise ValueError(f"test-time augmentation has the modes 0, 1 and 2, found {tta}")
    total: Array | None = None
    for way in ways:  # each is its own inverse
        found = way(_stitched(way(volume), network, window, stride, batch))
        total = found.copy() if total is None else total + found
    assert total is not None
    return total / np.float32(len(ways))


def _stitched(volume: Array, network: Network, window: Sequence[int], stride: Sequence[int], batch: int) -> Array:
    shape = volume.shape[1:]
    window, stride = fitted(shape, window, stride)
    laid = plan(shape, window, starts=starts_of(shape, window, stride), axis=0)
    planes = stream(np.ascontiguousarray(volume), laid, network, softmax=False, batch=batch, reuse=False)
    return np.stack([plane.scores.transpose(1, 0, 2) for plane in planes], axis=1)
