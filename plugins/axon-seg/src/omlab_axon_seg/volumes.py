"""A cube, as a scan in a file of medical images, to its label map: nnU-Net's way, in which networks learn from cubes.

The whole cube's z-score; windows at most half a window apart; probabilities averaged, the middle of windows trusted
most; nothing mirrored.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from omlab.cases import Volume
from omlab.errors import UsageError
from omlab.geometry import Geometry, Turn
from omlab.inference.sliding import plan, stream
from omlab.model import Context
from omlab.results import Label, Segmentation
from omlab.results.nifti import write_array
from omlab_axon_seg.brain import Network
from omlab_axon_seg.labels import line_length, skeleton
from omlab_axon_seg.measures import figures, spacing_of

#: Axes of the files that training cubes are written to (:func:`omlab_axon_seg.training_set.write`), as SimpleITK and
#: nnU-Net have them.
AXES = "LPS"


def seen(volume: Volume) -> tuple[Turn, NDArray[np.float32]]:
    """What the network looks at: (the turn to ``AXES``, [z, y, x] with the z-score of the whole cube)."""
    turn = Turn.to(volume.geometry, AXES)
    values = turn.apply(volume.voxels).T.astype(np.float32)
    centre, spread = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    values -= np.float32(centre)
    values /= np.float32(spread + 1e-8)
    return turn, values


def run(volume: Volume, context: Context, network: Network, structure: Label, side: int) -> Segmentation:
    """Segment a cube in memory.

    Parameters
    ----------
    network : takes windows of ``side`` voxels.

    Raises
    ------
    omlab.errors.UsageError
        An option is given that only stacks have.
    """
    options = context.options
    for name in ("region", "background"):
        if options[name] not in ("", None):
            raise UsageError(f"option '{name}' is for stacks, {volume.name} is a volume", remedy="Save it as a TIFF")
    with context.stage("prepare"):
        turn, values = seen(volume)
    seconds = 0.0

    def windows(given: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal seconds
        start = time.perf_counter()
        logits = np.stack([network(window[0]) for window in given])
        seconds += time.perf_counter() - start
        return logits if logits.shape[1] > 1 else np.concatenate([np.zeros_like(logits), logits], axis=1)

    with context.stage("restore"):
        laid = plan(values.shape, (side,) * 3, axis=0)
        planes = stream(
            values[None], laid, windows,
            done=lambda done, total: context.progress("network", done, total, "windows"),
        )  # fmt: skip
        grey = np.stack([(plane.scores[:, 1] * np.float32(255)).astype(np.uint8) for plane in planes])
        mask = grey > int(options["threshold"])
        lines = skeleton(mask)
        found: dict[str, NDArray[np.uint8]] = {}
        for name, made in (("lines", lines * np.uint8(structure.value)), ("probabilities", grey)):
            if options[name]:
                found[name] = turn.undo(made.T)
        labels = np.ascontiguousarray(turn.undo((mask * np.uint8(structure.value)).T))
    context.share_out(seconds)
    spacing = spacing_of(options["voxel"]) or told_um(turn.target)
    numbers = figures(int(mask.sum()), mask.size, line_length(lines, spacing or (1, 1, 1)), spacing)
    return Segmentation(
        labels=labels, structures=[structure], geometry=volume.geometry,
        measurements=numbers | {"windows": float(laid.windows)},
        files={
            f"{name}.nii.gz": partial(write_array, np.ascontiguousarray(array), volume.geometry)
            for name, array in found.items()
        },
    )  # fmt: skip


def told_um(geometry: Geometry) -> tuple[float, float, float] | None:
    """Micrometres a voxel, (z, y, x). ``None`` for 1 mm along each axis: so training cubes are written, of which nobody
    told the size."""
    spacing = geometry.spacing_mm
    if np.allclose(spacing, 1, rtol=0, atol=1e-6):
        return None
    x, y, z = (float(s) * 1e3 for s in spacing)
    return z, y, x
