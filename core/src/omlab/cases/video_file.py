"""Frames of video files, through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.video_avi import Chunks
from omlab.errors import InputError, require

#: Decoding so many frames in vain costs no more than to jump to a key frame.
NEAR, FAR = 16, 400


@attrs.frozen(eq=False)
class Index:
    """Every packet of the stream in the order in which frames are shown.

    Attributes
    ----------
    times : [frames] in steps of the file's clock.
    keys : numbers of the frames from which decoding can begin.
    """

    times: NDArray[np.int64]
    keys: NDArray[np.int64]


class FileFrames:
    """The first video stream of a file, or of the bytes of one. See :class:`omlab.cases.video.Frames`."""

    def __init__(self, source: Path | bytes, *, name: str = "") -> None:
        self._av = require("av", needed_for="reading videos", install="omlab[video]")
        self._source = source
        self._name = name or (source.name if isinstance(source, Path) else "video")
        self._index: Index | None = None
        self._chunks: Chunks | None = None
        self._start: int | None = None  # time of the first frame of an AVI
        self._lost = 0
        self.warnings: list[str] = []
        try:
            with self._open() as container:
                stream = self._stream(container)
                self._chunks = Chunks.of(container, stream)
                if self._chunks is not None:
                    times = self._chunks.first + np.arange(self._chunks.count, dtype=np.int64)
                    self._index = Index(times, self._chunks.keys)
                first, rotation = self._first(container, stream)
                self.details: dict[str, Any] = {
                    "container": container.format.name, "codec": stream.codec_context.name, "rotation": rotation,
                }  # fmt: skip
                rate = stream.average_rate or stream.guessed_rate
                self.rate = float(rate) if rate else None
                header, duration, length = int(stream.frames), stream.duration, container.duration
        except (self._av.error.FFmpegError, ValueError) as error:
            raise InputError(
                f"{self._name}: is damaged or cut short: {_reason(error)}", remedy="Fetch or export it again"
            ) from None
        ratio = stream.sample_aspect_ratio
        if ratio and ratio != 1:
            self.details["pixel_aspect"] = float(ratio)
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        self.counted = header < 1
        self.count = header if header > 0 else len(self.index.times)
        told = round(length / self._av.time_base * self.rate) if length and self.rate else 0
        if self.counted and self.count < 0.9 * told:
            self._warn(f"is cut short: {self.count} frames of about {told} are there and were used")
        # A duration of the stream and a count in the header are what a clock can be made of.
        self.ticks = duration / header if duration and header > 0 else None

    def _open(self) -> Any:
        # FFmpeg guesses the demuxer from the content; its own protocols (http, concat) must not be reached by a name.
        if isinstance(self._source, Path):
            return self._av.open(f"file:{self._source}", options={"protocol_whitelist": "file"})
        return self._av.open(BytesIO(self._source))

    def _stream(self, container: Any) -> Any:
        # A cover picture is a video stream to FFmpeg.
        attached = self._av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & attached]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise InputError(f"{self._name}: has no video stream, it has {kinds}")
        stream = streams[0]
        stream.thread_type = "AUTO"
        return stream

    def _first(self, container: Any, stream: Any) -> tuple[NDArray[np.uint8], int]:
        """The first frame that can be decoded, as shown, and by how many degrees it was turned."""
        for frame in self._frames(container, stream):
            return _shown(frame), round(getattr(frame, "rotation", 0) or 0)
        self._lost = 0
        raise InputError(f"{self._name}: has no frame that can be decoded", remedy="Fetch or export it again")

    @property
    def index(self) -> Index:
        """Where the frames lie in the file; read without decoding, once."""
        if self._index is None:
            times, keys = [], []
            try:
                with self._open() as container:
                    for packet in container.demux(self._stream(container)):
                        if packet.size and packet.pts is not None and not packet.is_corrupt:
                            times.append(packet.pts)
                            keys.append(bool(packet.is_keyframe))
            except self._av.error.FFmpegError as error:
                self._warn(f"is cut short after {len(times)} frames ({_reason(error)})")
            order = np.argsort(times, kind="stable")
            self._index = Index(np.array(times, np.int64)[order], np.flatnonzero(np.array(keys, bool)[order]))
        return self._index

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Packets with their times; those that an AVI has lost are counted."""

        def lost(count: int) -> None:
            self._lost += count

        packets = container.demux(stream)
        if self._chunks is None:
            yield from packets
            return
        for packet in self._chunks.timed(packets, lost):
            if self._start is None and packet.dts is not None and packet.pts is not None:
                self._start = self._chunks.first + packet.pts - packet.dts  # shown so much later than decoded
            yield packet

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames in the order in which they are shown."""
        frames = self._decoded_packets(container, stream)
        return frames if self._chunks is None else self._chunks.shown(frames)

    def _decoded_packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames as they come; packets that cannot be decoded are counted and passed over."""
        packets = self._packets(container, stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._av.error.EOFError:
                return
            except self._av.error.FFmpegError as error:
                self._warn(f"is damaged, reading ends early ({_reason(error)})")
                return
            try:
                yield from packet.decode()
            except self._av.error.EOFError:
                return
            except self._av.error.FFmpegError:
                self._lost += 1

    def decode(self, wanted: Iterator[int]) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """The frames of these growing numbers; see :class:`omlab.cases.video.Frames`."""
        target = next(wanted, None)
        if target is None:
            return
        self._lost = 0
        try:
            yield from self._decoded(target, wanted)
        finally:  # those who have seen enough are told, too
            if self._lost:
                self._warn("is damaged: some frames cannot be decoded; those before and after were used")

    def _decoded(self, target: int | None, wanted: Iterator[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        with self._open() as container:
            stream = self._stream(container)
            frames, place, ended = self._frames(container, stream), -1, False
            while target is not None and not ended:
                key = self._key_before(target) if self._far(target - place) else -1
                if key > place + NEAR:
                    container.seek(int(self.index.times[key]), stream=stream)
                    frames, place = self._frames(container, stream), key - 1
                ended = True
                for frame in frames:
                    number = self._number(frame, place)
                    place = number
                    if number < target:
                        continue
                    while target is not None and target < number:  # lost: it was never decoded
                        target = next(wanted, None)
                    if target is None:
                        break
                    if target == number:
                        shown = _shown(frame)
                        if shown.shape[:2] == self.size:
                            yield number, shown
                        else:
                            self._warn("changes its size on the way; frames of another size were left out")
                        target = next(wanted, None)
                    if target is None or self._far(target - place):
                        ended = target is None
                        break
            if target is not None and place + 1 < self.count:
                self._warn(f"ends after frame {place}, {self.count} frames were expected; what is there was used")

    def _far(self, frames: int) -> bool:
        """Is it worth a jump? Without an index, only what is worth to read the whole file for one."""
        return frames > (NEAR if self._index is not None else FAR)

    def _key_before(self, number: int) -> int:
        keys = self.index.keys
        found = int(np.searchsorted(keys, number, side="right")) - 1
        return int(keys[found]) if found >= 0 else -1

    def _number(self, frame: Any, place: int) -> int:
        """Number of a decoded frame: by its time where that is known, so that lost frames shift none after them."""
        if self._chunks is not None:
            gone = self._lost or self._chunks.gaps
            known = gone and frame.pts is not None and self._start is not None
            return max(place + 1, frame.pts - self._start) if known else place + 1
        if frame.pts is None or (self._index is None and not self._lost):
            return place + 1
        times = self.index.times
        found = int(np.searchsorted(times, frame.pts))
        return found if found < len(times) and times[found] == frame.pts else place + 1

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _shown(frame: Any) -> NDArray[np.uint8]:
    """[row, column, RGB], turned as the file says; FFmpeg counts against the clock."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().splitlines()[0]
