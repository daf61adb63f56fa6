"""MedLAM's localisation: where the extreme points of an organ lie in a scan.

Places are (z, y, x). Between scan and result they are voxels of 3 mm of the scan padded by half a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab_medlsam.points import SIX, corners, ordered
from omlab_medlsam.scans import SPACING_MM, Prepared, padded, patch_at
from omlab_medlsam.templates import KERNELS, Run, Template

#: Millimetres along z, y, x that a difference of positions spans at most.
RATIO_MM = (1500.0, 600.0, 600.0)
#: Crops that say where the scan lies, and how far from its middle they are drawn.
CROPS, REACH = 10, 10
#: Below this a voxel is air; crops are drawn elsewhere. Tries after which a scan counts as empty.
AIR, TRIES = 0.001, 2000
SEED = 2023


@attrs.frozen(eq=False)
class Query:
    """A scan that points are looked for in.

    Attributes
    ----------
    image : [z, y, x] at 3 mm, padded.
    margin : (z, y, x) voxels of padding before the scan.
    start : [3] mean centre of the crops, mm from the padded corner.
    starts : [crops, 3] their centres, mm.
    positions : [crops, 3] what the position head says of each, and ``position`` [3] the mean of it.
    """

    image: NDArray[np.float32]
    margin: NDArray[np.int64]
    start: NDArray[np.float64]
    starts: NDArray[np.int16]
    positions: NDArray[np.float32]

    @property
    def position(self) -> NDArray[np.float32]:
        """[3] mean over the crops."""
        return self.positions.mean(axis=0)


@attrs.frozen(eq=False)
class Located:
    """Where an organ was found, voxels at 3 mm of the scan without padding.

    Attributes
    ----------
    points : [points, 3] int16.
    coarse : [points, 3] before they were refined and clamped, likewise.
    relative : [points, 3] mm from the start.
    offsets : [points, 3] voxels that refinement moved them by.
    similarity : [points] greatest similarity, at most 1 plus the number of supports a scale; empty without refinement.
    maps : [points, patch, patch, patch] similarities, where they were kept.
    """

    points: NDArray[np.int16]
    coarse: NDArray[np.int64]
    relative: NDArray[np.float32]
    offsets: NDArray[np.int64]
    similarity: NDArray[np.float32]
    maps: NDArray[np.float32] | None = None


def look(
    position: Run, image: NDArray[np.float32], patch: int, *, crops: int = CROPS, seed: int | None = SEED,
    name: str = "scan",
) -> Query:  # fmt: skip
    """Find out where in the body a scan lies.

    Parameters
    ----------
    position : engine of the graph ``position``.
    image : [z, y, x] at 3 mm.
    seed : of the places of the crops.

    Raises
    ------
    InputError
        There is nothing but air around the middle of the scan.
    """
    whole, margin = _fitted(image, patch)
    random = np.random.RandomState(seed)
    places = np.array([_drawn(random, whole, name) for _ in range(crops)])
    patches = np.stack([patch_at(whole, place, patch) for place in places])[:, None]
    found = np.concatenate([position({"patches": p[None]})["fc_position"] for p in patches])
    starts = (places * SPACING_MM).astype(np.int16)
    return Query(whole, margin, starts.mean(axis=0), starts, found.astype(np.float32))


def _fitted(image: NDArray[np.float32], patch: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Padded so that a patch fits around every voxel, and further where the scan is no larger than a patch then."""
    whole = padded(image, patch)
    more = [(patch - n) // 2 + 3 if n <= patch else 0 for n in whole.shape]
    if any(more):
        whole = np.pad(whole, [(m, m) for m in more])
    return whole, np.array(more, np.int64) + patch // 2


def _drawn(random: np.random.RandomState, image: NDArray[np.float32], name: str) -> list[int]:
    for _ in range(TRIES):
        place = [int(random.randint(n // 2 - REACH, n // 2 + REACH)) for n in image.shape]
        if image[tuple(place)] >= AIR:
            return place
    raise InputError(
        f"{name}: there is only air around its middle",
        remedy="MedLAM takes CT in Hounsfield units with the patient in the middle",
    )


def locate(
    match: Run | None,
    query: Query,
    template: Template,
    patch: int,
    *,
    scales: Sequence[int] = (0, 1, 2),
    ratio: Sequence[float] = RATIO_MM,
    keep_maps: bool = False,
    tell: Callable[[], None] | None = None,
) -> Located:
    """Find the points of one organ.

    Parameters
    ----------
    match : engine of the graph ``match``; not asked without scales.
    scales : of the features that coarse places are refined with; without any they stay.
    keep_maps : keep the similarity around every point.
    tell : called after each point.
    """
    gap = template.positions - query.position
    relative = (np.asarray(ratio, np.float32) * np.tanh(gap)).astype(np.float32)
    coarse = np.around((relative + query.start) / SPACING_MM).astype(np.int16).astype(np.int64)
    places, offsets = coarse.copy(), np.zeros_like(coarse)
    similarity: list[float] = []
    maps = []
    if scales:
        assert match is not None
        size = np.array(query.image.shape)
        places = np.clip(coarse, patch // 2, size - patch // 2 - 1)
        seen: dict[tuple[object, ...], tuple[NDArray[np.int64], float, NDArray[np.float32] | None]] = {}
        for number, place in enumerate(places):
            # Neighbouring parts of an organ share points, and so do their kernels.
            kernels = [k[number] if i in scales else np.zeros_like(k[number]) for i, k in enumerate(template.kernels)]
            key = (*place.tolist(), *(k.tobytes() for k in kernels))
            if key not in seen:
                found = match({
                    "patch": patch_at(query.image, place, patch)[None, None],
                    **{name: kernel[None] for name, kernel in zip(KERNELS, kernels, strict=True)},
                })["similarity"][0]  # fmt: skip
                best = np.unravel_index(int(found.argmax()), found.shape)
                offset = np.array(best, np.int64) - patch // 2 + 1
                seen[key] = offset, float(found.max()), found if keep_maps else None
            offsets[number], most, around = seen[key]
            similarity.append(most)
            if around is not None:
                maps.append(around)
            if tell is not None:
                tell()
    return Located(
        points=(places + offsets - query.margin).astype(np.int16), coarse=coarse - query.margin, relative=relative,
        offsets=offsets, similarity=np.array(similarity, np.float32), maps=np.stack(maps) if maps else None,
    )  # fmt: skip


def in_source(points: NDArray[np.int16], prepared: Prepared) -> NDArray[np.int64]:
    """Points [6 parts, (z, y, x)] at 3 mm to the array of the file as (k, j, i), [parts, 6, 3], in the order of six
    points along the file's axes.

    A file whose axes are permuted gets points in its own order: the first of an axis has the least index along it.
    """
    las = prepared.in_file(points).reshape(-1, SIX, 3)
    turn = prepared.turn
    # Axis a of the LAS array (x, y, z) is axis order[a] of the file.
    xyz = las[..., ::-1]
    found = np.empty_like(xyz)
    for axis, (source, flipped) in enumerate(zip(turn.order, turn.flipped, strict=True)):
        size = turn.target.shape[axis]
        found[..., source] = size - 1 - xyz[..., axis] if flipped else xyz[..., axis]
    kji = found[..., ::-1]
    # Point a was the outermost along (z, y, x)[a]; along the file that is another axis.
    order = [_las_axis(turn.order, axis) for axis in range(3)]
    return ordered(kji[:, [*order, *(n + 3 for n in order)]])


def _las_axis(order: Sequence[int], axis: int) -> int:
    """Which of LAS (z, y, x) runs along the file's (k, j, i)[axis]."""
    return 2 - list(order).index(2 - axis)


def boxes(points: NDArray[np.int16], prepared: Prepared) -> NDArray[np.int64]:
    """[parts, 2, 3] corners (k, j, i) in the file's array."""
    return corners(in_source(points, prepared))
