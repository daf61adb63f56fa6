"""From boxes in a volume to a label map: MedSAM slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.geometry import Turn
from omlab_medlsam import slices
from omlab_sdk.segment_anything.frame import Frame
from omlab_sdk.segment_anything.predictor import Predictor, Query, Run

#: Slices are shown as SimpleITK reads most files, and as MedSAM learnt them: rows to the back, columns to the left.
ORIENTATION = "LPS"


def turned_boxes(boxes: NDArray[Any], turn: Turn) -> NDArray[np.int64]:
    """Corners [..., 2, (k, j, i)] in a file's array to corners (z, y, x) of the turned array, low before high."""
    ijk = boxes[..., ::-1]
    found = np.empty_like(ijk)
    for axis, (source, flipped) in enumerate(zip(turn.order, turn.flipped, strict=True)):
        found[..., axis] = turn.target.shape[axis] - 1 - ijk[..., source] if flipped else ijk[..., source]
    return np.sort(found[..., ::-1], axis=-2)


def segmented(
    encoder: Run,
    decoder: Run,
    volume: NDArray[Any],
    boxes: Mapping[int, NDArray[np.int64]],
    size: int,
    *,
    threshold: float = 0.5,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.uint16]:
    """Label map [z, y, x] of the organs whose boxes are given.

    A slice is encoded once for all organs. A voxel that several organs claim goes to the most probable.

    Parameters
    ----------
    volume : [z, y, x] Hounsfield units.
    boxes : label -> [parts, 2, 3] corners (z, y, x), both included; of parts that share a slice the later one counts.
    size : side of the frame.
    """
    labels = np.zeros(volume.shape, np.uint16)
    asked = _by_slice(boxes, volume.shape, size)
    levels = slices.grey_levels(volume)
    shape = volume.shape[1:]
    frame = Frame(size, (size, size), (size, size))
    for number, (z, prompts) in enumerate(sorted(asked.items())):
        tell(number, len(asked))
        picture = slices.framed(slices.grey(volume[z], levels), size)
        embedding = encoder({"image": slices.encoder_input(picture)})["image_embeddings"]
        predictor = Predictor(decoder, frame, embedding)
        masks, _ = predictor.decode([Query(box=box) for box in prompts.values()])
        best = np.full(shape, threshold, np.float32)
        for value, low in zip(prompts, masks[:, 0], strict=True):
            found = slices.on_slice(low, size, shape)
            wins = found > best
            labels[z][wins], best[wins] = value, found[wins]
    tell(len(asked), len(asked))
    return labels


def _by_slice(
    boxes: Mapping[int, NDArray[np.int64]], shape: Sequence[int], size: int
) -> dict[int, dict[int, NDArray[np.float32]]]:
    """Slice -> label -> box in the frame; boxes beside the slice are left out."""
    asked: dict[int, dict[int, NDArray[np.float32]]] = {}
    for value, parts in boxes.items():
        for corners in parts:
            x0, y0, x1, y1 = framed = slices.box_in_frame(corners, shape[1:], size)
            if x1 <= 0 or y1 <= 0 or x0 >= size or y0 >= size:
                continue
            for z in range(max(0, int(corners[0, 0])), min(shape[0] - 1, int(corners[1, 0])) + 1):
                asked.setdefault(z, {})[value] = framed
    return asked


def filled(boxes: Mapping[int, NDArray[np.int64]], shape: Sequence[int]) -> NDArray[np.uint16]:
    """Label map [z, y, x] of the boxes themselves, smaller ones on top of greater ones."""
    labels = np.zeros(tuple(shape), np.uint16)

    def voxels(value: int) -> int:
        return int(np.prod(boxes[value][:, 1] - boxes[value][:, 0] + 1, axis=1).sum())

    for value in sorted(boxes, key=voxels, reverse=True):
        for low, high in boxes[value]:
            labels[tuple(slice(max(0, int(a)), max(0, int(b) + 1)) for a, b in zip(low, high, strict=True))] = value
    return labels
