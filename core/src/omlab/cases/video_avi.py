"""The clock of AVI files.

Such a file holds no times: the time of a frame is its number, and FFmpeg counts the chunks that it comes by. Where some
were lost, all later frames would so get the numbers of earlier ones. The table at the end of the file tells the number
of each chunk by its place. Chunks without content, which recorders write for frames that they dropped, have numbers,
too, and give no frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

#: Bytes of a chunk's head, before its data.
_HEAD = 8
#: Frames that may be between a frame's place in the file and the one in which it is shown.
_REORDERED = 8


@attrs.frozen(eq=False)
class Chunks:
    """The table of chunks.

    Attributes
    ----------
    first : time of the first chunk, in steps of the file's clock; each frame is one step.
    places : where the data of each chunk lie in the file, growing.
    times : of the same chunks.
    keys : numbers of the frames from which decoding can begin.
    gaps : some frames were dropped by the recorder.
    reordered : frames are stored in another order than they are shown in.
    """

    first: int
    places: NDArray[np.int64]
    times: NDArray[np.int64]
    keys: NDArray[np.int64]
    gaps: bool
    reordered: bool

    @classmethod
    def of(cls, container: Any, stream: Any) -> Chunks | None:
        """That of an open file; ``None`` where it is no AVI, or where the table is lost."""
        entries = list(getattr(stream, "index_entries", None) or ()) if container.format.name == "avi" else []
        if not entries or not stream.frames:
            return None
        first, span = int(entries[0].timestamp), int(entries[-1].timestamp - entries[0].timestamp) + 1
        if span < 0.9 * stream.frames:  # what FFmpeg found on its way, and no table
            return None
        places = np.array([entry.pos + _HEAD for entry in entries], np.int64)
        times = np.array([entry.timestamp for entry in entries], np.int64)
        order = np.argsort(places, kind="stable")
        keys = np.array([entry.timestamp - first for entry in entries if entry.is_keyframe], np.int64)
        reordered = bool(stream.codec_context.has_b_frames)
        return cls(first, places[order], times[order], keys, len(entries) < span, reordered)

    @property
    def count(self) -> int:
        """Frames by the table, dropped ones among them."""
        return int(self.times.max()) - self.first + 1

    def timed(self, packets: Iterator[Any], lost: Callable[[int], None]) -> Iterator[Any]:
        """Packets with their true times; ``lost`` is told how many are missing before one."""
        behind = 0
        for packet in packets:
            if packet.dts is not None:
                shift = self._time(packet.pos, packet.dts + behind) - packet.dts
                if shift > behind:
                    lost(shift - behind)
                behind = shift
                if shift:
                    packet.dts += shift
                    packet.pts = None if packet.pts is None else packet.pts + shift
            yield packet

    def _time(self, place: int | None, otherwise: int) -> int:
        if place is None:
            return otherwise
        found = int(np.searchsorted(self.places, place))
        known = found < len(self.places) and self.places[found] == place
        return int(self.times[found]) if known else otherwise

    def shown(self, frames: Iterator[Any]) -> Iterator[Any]:
        """Decoded frames, which come in the order in which they are shown, with times that grow."""
        depth = _REORDERED if self.reordered else 0
        held: deque[Any] = deque()
        for frame in frames:
            held.append(frame)
            if len(held) > depth:
                yield _earliest(held)
        while held:
            yield _earliest(held)


def _earliest(held: deque[Any]) -> Any:
    """The first frame, with the earliest time of it and those after it."""
    earliest = min((frame.pts for frame in held if frame.pts is not None), default=None)
    frame = held.popleft()
    frame.pts = earliest
    return frame
