"""Videos: MP4, AVI, MKV, a folder of frames, a DICOM cine loop. Frames are decoded when they are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.sniff import Family, family_of
from omlab.cases.types import Case, Source
from omlab.errors import InputError
from omlab.vocabulary import InputKind

if TYPE_CHECKING:
    Frame = NDArray[np.uint8]

#: Frames a second of a folder of frames, which does not tell.
USUAL_RATE = 30.0
#: How far is looked back for a frame in place of one that is lost, in steps.
_BACK = (8, 64, 512)


class Frames(Protocol):
    """Where a video's frames come from."""

    #: Frames, by the header of the file or by counting.
    count: int
    #: ``count`` was counted and not taken from a header.
    counted: bool
    #: Frames a second; ``None`` where the file does not tell.
    rate: float | None
    #: Steps of the file's clock from one frame to the next; ``None`` where the file does not tell.
    ticks: float | None
    #: (rows, columns) as shown.
    size: tuple[int, int]
    #: What the reader found.
    details: dict[str, Any]
    #: What is wrong with the file; grows while frames are decoded.
    warnings: list[str]

    def decode(self, wanted: Iterator[int]) -> Generator[tuple[int, Frame], None, None]:
        """The frames of these numbers, which grow, each with its number; those that cannot be decoded are left out."""
        ...


@attrs.frozen(eq=False, kw_only=True)
class Video(Case):
    """A video. Nothing of it is in memory but what was just asked for.

    A file that is damaged or cut short gives the frames that can be decoded, and its ``source.warnings`` say so from
    then on. A video of a single frame is a video: clips repeat its frame.

    Attributes
    ----------
    frames_from : the reader.
    frame_count : frames by the file's header, or counted (:attr:`exact`).
    exact : the frames were counted; a header may be wrong where the file is damaged.
    rate : frames a second; 30 where the file does not tell (:attr:`rate_known`).
    size : (rows, columns), turned as the file says it is to be shown.
    ticks : steps of the file's clock from one frame to the next; ``None`` where it does not tell its duration.
    """

    frames_from: Frames
    kind = InputKind.VIDEO

    @property
    def frame_count(self) -> int:
        return self.frames_from.count

    @property
    def exact(self) -> bool:
        return self.frames_from.counted

    @property
    def rate(self) -> float:
        return self.frames_from.rate or USUAL_RATE

    @property
    def rate_known(self) -> bool:
        return self.frames_from.rate is not None

    @property
    def size(self) -> tuple[int, int]:
        return self.frames_from.size

    @property
    def ticks(self) -> float | None:
        return self.frames_from.ticks

    def time_s(self, frame: int) -> float:
        """Seconds from the first frame to this one, at an even rate."""
        return frame / self.rate

    def frames(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, Frame]]:
        """Frames from ``start`` on, every ``step``-th, one at a time: (number, [row, column, RGB] uint8).

        Ends before ``stop`` where the file does. Raises :class:`omlab.errors.InputError` if not one can be decoded.
        """
        last = self.frame_count if stop is None else min(stop, self.frame_count)
        yield from self._decoded(iter(range(start, last, step)), start < last)

    def pick(self, indices: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """Frames of these growing numbers, one at a time, like :meth:`frames`; those that cannot be decoded are left
        out."""
        yield from self._decoded(iter(indices), True)

    def at(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Frames of these numbers in any order, [frame, row, column, RGB] uint8; decoded from the nearest key frame.

        A frame that is missing from a damaged file is replaced by the last one before it, else by the first there is.

        Raises
        ------
        IndexError
            A number is not of 0 to ``frame_count`` - 1.
        omlab.errors.InputError
            Not one of them can be decoded.
        """
        wanted = [int(i) for i in indices]
        if any(not 0 <= i < self.frame_count for i in wanted):
            asked = f"{min(wanted)} to {max(wanted)}"
            raise IndexError(f"{self.name} has frames 0 to {self.frame_count - 1}, asked for {asked}")
        found = dict(self._decoded(iter(sorted(set(wanted))), False))
        for number in sorted(set(wanted) - set(found)):
            found |= self._last_before(number)
        if wanted and not found:
            found = dict(itertools.islice(self.frames(), 1))  # raises where there is none
        have = np.array(sorted(found))
        places = np.maximum(np.searchsorted(have, wanted, side="right") - 1, 0)
        out = np.empty((len(wanted), *self.size, 3), np.uint8)
        for number, place in enumerate(places):
            out[number] = found[int(have[place])]
        return out

    def _last_before(self, number: int) -> dict[int, Frame]:
        """The last frame before this one that can be decoded, with its number; nothing where there is none."""
        for reach in _BACK:
            found = dict(self._decoded(iter(range(max(0, number - reach), number)), False))
            if found:
                last = max(found)
                return {last: found[last]}
        return {}

    def _decoded(self, wanted: Iterator[int], some: bool) -> Iterator[tuple[int, Frame]]:
        any_yet = False
        try:
            # Closed here, also if nobody wants the rest: only then has the reader told what was wrong with the file.
            with closing(self.frames_from.decode(wanted)) as decoded:
                for number, frame in decoded:
                    any_yet = True
                    yield number, frame
        finally:
            self._tell()
        if some and not any_yet:
            raise InputError(
                f"{self.name}: is damaged, none of the frames asked for can be decoded",
                remedy="Fetch or export it again",
            )

    def _tell(self) -> None:
        new = tuple(w for w in self.frames_from.warnings if w not in self.source.warnings)
        if new:
            # Damage shows while decoding, long after the case was made; the record of the run is written after that.
            source = attrs.evolve(self.source, warnings=(*self.source.warnings, *new))
            object.__setattr__(self, "source", source)


def read(path: str | Path) -> Video:
    """Open a video: a file, a DICOM cine loop, or a folder that directly holds frames as pictures.

    Raises
    ------
    omlab.errors.InputError
        It is missing, damaged from the start, has no video stream or no frame.
    """
    path = Path(path)
    if path.is_dir():
        from omlab.cases.video_folder import FolderFrames

        frames: Frames = FolderFrames(path)
        files: tuple[Path, ...] = tuple(frames.files)  # type: ignore[attr-defined]
        kind = "frames"
    elif family_of(path, {InputKind.VIDEO}) is Family.DICOM:
        from omlab.cases.video_cine import cine

        frames, files, kind = cine(path), (path,), "dicom"
    else:
        from omlab.cases.video_file import FileFrames

        frames, files, kind = FileFrames(path), (path,), "video"
    if frames.count < 1:
        raise InputError(f"{path.name}: has no frame")
    warnings = list(frames.warnings)
    if frames.rate is None:
        warnings.append(f"how many frames a second it has is not known, {USUAL_RATE:g} are taken")
    details = frames.details | {
        "frames": frames.count, "frames_counted": frames.counted, "rate": frames.rate, "dimensions": list(frames.size),
    }  # fmt: skip
    source = Source(path=path, format=kind, files=files, details=details, warnings=tuple(warnings))
    return Video(name=path.name, source=source, frames_from=frames)
