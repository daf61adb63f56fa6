"""Scores of a predicted axon mask against a true one, as the authors of D-LMBmap compute them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omlab_axon_seg.losses import centre_lines

#: Tolerances, in voxels, at which evaluations are reported: both masks are max-pooled with this kernel.
KERNELS = (5, 10, 15)
NAMES = ("iou", "t_iou", "dice", "cl_recall", "cl_precision", "cl_dice", "junk_ratio")


def scores(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, kernel: int = 1, stride: int = 1
) -> dict[str, float]:
    """All scores of one volume [z, y, x], or of several [sample, z, y, x].

    Parameters
    ----------
    kernel, stride : of the max-pooling of both masks before, without padding, so that small shifts do not count.
        Evaluations of cubes have a stride of 1, those of whole brains a stride as large as the kernel.

    Raises
    ------
    ValueError
        Shapes differ, or are smaller than the kernel.
    """
    if prediction.shape != truth.shape or min(prediction.shape[-3:]) < kernel:
        raise ValueError(f"masks of {prediction.shape} and {truth.shape} cannot be compared with a kernel of {kernel}")
    p, t = (_pooled(mask, kernel, stride) for mask in (prediction, truth))
    recall, precision, cl_dice = centre_lines(p, t)
    both, total = (p * t).sum(), p.sum() + t.sum()
    values = (
        both / (total - both + 1e-8), t_iou(p, t), (2 * both + 1) / (total + 1), recall, precision, cl_dice,
        junk_ratio(p, t),
    )  # fmt: skip
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


def t_iou(p: Tensor, t: Tensor) -> Tensor:
    """Intersection over union where a prediction that is one voxel beside the truth counts as right."""
    border = dilated(t) - t
    return (p * (t + border)).sum() / ((p * border + t + p - t * p).sum() + 1e-8)


def junk_ratio(p: Tensor, t: Tensor) -> Tensor:
    """Share of the wrong voxels that lie in samples without any axon."""
    wrong = (p - t).abs().flatten(1).sum(1)
    empty = t.flatten(1).sum(1) == 0
    return wrong[empty].sum() / (wrong.sum() + 1e-10)


def dilated(x: Tensor) -> Tensor:
    """[batch, channel, z, y, x] grown by one voxel along each axis: the six neighbours."""
    lines = [
        F.max_pool3d(x, kernel, 1, padding)
        for kernel, padding in (((3, 1, 1), (1, 0, 0)), ((1, 3, 1), (0, 1, 0)), ((1, 1, 3), (0, 0, 1)))
    ]
    return torch.maximum(torch.maximum(lines[0], lines[1]), lines[2])


def _pooled(mask: NDArray[np.bool_], kernel: int, stride: int) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(mask, np.float32))
    x = x.reshape(-1, 1, *x.shape[-3:])
    return F.max_pool3d(x, kernel, stride) if kernel > 1 else x
