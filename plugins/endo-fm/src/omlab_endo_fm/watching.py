"""What the three models share: which case they take, and clips as they stream by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Video
from omlab.errors import InputError, UsageError, require

#: Of the transformer, for checks: two narrow blocks.
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}
#: Frames smaller than this show nothing that a network of patches of 16 pixels could tell.
SMALLEST = 32


def video_of(case: Case, model: str) -> Video:
    """The case as a video. Raises :class:`omlab.errors.InputError` if it is none, or too small to see anything."""
    if not isinstance(case, Video):
        raise InputError(f"{case.name}: {model} takes a video, found {case.kind}")
    rows, columns = case.size
    if min(rows, columns) < SMALLEST:
        raise InputError(
            f"{case.name}: has frames of {rows} x {columns} pixels, expected at least {SMALLEST} along each side"
        )
    return case


def shape_of(variant: Variant) -> dict[str, int]:
    """Width, depth and heads of a variant's transformer: ViT-B's unless it says otherwise."""
    return {"embed_dim": 768, "depth": 12, "num_heads": 12} | dict(variant.config.get("shape", {}))


def at_least(name: str, value: int, least: int, model: str) -> int:
    """An option that counts. Raises :class:`omlab.errors.UsageError`."""
    if value < least:
        raise UsageError(f"'{model}': option '{name}' is at least {least}, found {value}")
    return value


def need_torch(model: str) -> None:
    """Raises :class:`omlab.errors.MissingDependency` where an engine cannot be made."""
    for module in ("torch", "omlab_sdk"):
        require(module, needed_for=f"making the engine of {model}", install="omlab-endo-fm[convert]")


def stream(
    video: Video, clips: Sequence[NDArray[np.int64]], prepare: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Clips [RGB, frame, row, column] one after the other, from one pass over the video.

    A frame that cannot be decoded is replaced by the last one before it, else by the first one after it. Clips that
    begin behind the last frame of a video that is shorter than its header says are left out, but for the first.

    Parameters
    ----------
    clips : frame numbers of each, in the order of their starts.
    prepare : one frame [row, column, RGB] to what the network sees, [RGB, row, column].
    """
    incoming = video.pick(sorted({int(i) for clip in clips for i in clip}))
    held: dict[int, NDArray[np.float32]] = {}
    ended = False
    for number, clip in enumerate(clips):
        while max(held, default=-1) < clip[-1]:
            arrived = next(incoming, None)
            if arrived is None:
                ended = True
                break
            held[arrived[0]] = prepare(arrived[1])
        if not held:
            raise InputError(f"{video.name}: has no frame that can be decoded", remedy="Fetch or export it again")
        have = np.array(sorted(held))
        if ended and number and clip[0] > have[-1]:
            return
        places = np.maximum(np.searchsorted(have, clip, side="right") - 1, 0)
        yield np.stack([held[int(have[p])] for p in places], axis=1)
        if number + 1 < len(clips):
            first, last = int(clips[number + 1][0]), int(have[-1])
            held = {i: frame for i, frame in held.items() if i >= first or i == last}
