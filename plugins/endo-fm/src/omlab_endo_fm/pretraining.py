"""How Endo-FM was pre-trained: a student learns to predict, from views of a clip, what its own running average says of
two longer ones (DINO, Caron et al. 2021, with the views of SVT, Ranasinghe et al. 2022)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omlab_sdk.networks.dino import (
    DinoHead,
    DinoLoss,
    Learner,
    NormedLinear,
    clip_gradients,
    cosine,
    follow,
    parameter_groups,
)

__all__ = [
    "GROUPS", "LOCAL_FRAMES", "MEAN", "STD", "DinoHead", "DinoLoss", "Learner", "NormedLinear", "clip_gradients",
    "cosine", "follow", "parameter_groups", "view_frames",
]  # fmt: skip

#: Frames of the eight local views, and groups of views that go through the student together.
LOCAL_FRAMES = (2, 2, 4, 4, 8, 8, 16, 16)
GROUPS = ((0,), (1,), (2, 3), (4, 5), (6, 7), (8, 9))
#: ImageNet's, here alone: the tasks downstream use 0.45 and 0.225.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def view_frames(frames: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Which of ``frames`` decoded frames each of the ten views takes: two global ones, then eight local ones."""
    stretch = frames // 8
    spans = [(0.0, frames - 5.0, 8), (5.0, float(frames), 16)]
    for count in LOCAL_FRAMES:
        start = int(generator.integers(0, max(0, frames - stretch - 1) + 1))
        spans.append((start, start + stretch, count))
    return [np.clip(np.linspace(a, b, n), 0, frames - 1).astype(np.int64) for a, b, n in spans]
