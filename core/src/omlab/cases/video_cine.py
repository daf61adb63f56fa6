"""DICOM cine loops: multi-frame images, and videos that were put into DICOM as they are."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.cases.dicom_header import DAMAGE, Header, read_header
from omlab.cases.dicom_pixels import refuse_undecodable
from omlab.cases.types import Image
from omlab.errors import InputError

#: Transfer syntaxes of MPEG-2, MPEG-4 AVC and HEVC: one stream for all frames.
_STREAMS = tuple(f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109))


def cine(path: Path) -> Any:
    """Frames of a DICOM file. Raises :class:`omlab.errors.InputError`."""
    header = read_header(path)
    if header.syntax.startswith(_STREAMS):
        return _stream(header)
    return CineFrames(header)


def _rate(header: Header) -> float | None:
    """Frames a second, from the time of a frame or the rate that the file names."""
    duration = header.get("FrameTime")
    if duration is not None and float(duration) > 0:
        return 1000.0 / float(duration)
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        value = header.get(keyword)
        if value is not None and float(value) > 0:
            return float(value)
    return None


def _stream(header: Header) -> Any:
    """The encapsulated stream, read like a file of its own."""
    import pydicom
    from pydicom.encaps import generate_fragments

    from omlab.cases.video_file import FileFrames

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = pydicom.dcmread(header.path, force=True).PixelData
            content = b"".join(generate_fragments(_after_offsets(pixels)))
    except DAMAGE as error:
        raise InputError(
            f"{header.path.name}: its video is damaged or cut short: {error}", remedy="Fetch or export it again"
        ) from None
    frames = FileFrames(content, name=header.path.name)
    frames.rate = _rate(header) or frames.rate
    frames.details["syntax"] = header.syntax
    return frames


def _after_offsets(pixels: bytes) -> bytes:
    """Encapsulated fragments without the table of offsets before them."""
    length = int.from_bytes(pixels[4:8], "little")
    return pixels[8 + length :]


class CineFrames:
    """See :class:`omlab.cases.video.Frames`."""

    ticks = None

    def __init__(self, header: Header) -> None:
        refuse_undecodable(header)
        self._header = header
        self.count, self.counted = header.frames, True
        self.size = (header.number("Rows"), header.number("Columns"))
        self.rate = _rate(header)
        self.details: dict[str, Any] = {"modality": header.modality, "syntax": header.syntax}
        self.warnings: list[str] = []
        if self.count > 0:
            next(self.decode(iter([0])), None)  # damage of the whole shows when the case is read

    def decode(self, wanted: Iterator[int]) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """Frame by frame, straight from the file."""
        from pydicom.pixels import iter_pixels
        from pydicom.pixels.processing import apply_color_lut

        header = self._header
        palette = header.get("PhotometricInterpretation") == "PALETTE COLOR"
        bits = int(header.get("BitsStored", 8))
        done: list[int] = []

        def noted() -> Iterator[int]:
            for number in wanted:
                done.append(number)
                yield number

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for pixels in iter_pixels(header.path, indices=noted()):
                    values = apply_color_lut(pixels, header.tags) if palette else pixels
                    if header.get("PhotometricInterpretation") == "MONOCHROME1" and values.dtype.kind == "u":
                        values = (2**bits - 1) - values
                    if palette and values.dtype != np.uint8:
                        values = (values >> 8).astype(np.uint8)
                    yield done[-1], Image(name=header.path.name, pixels=values, bits=bits).rgb8()
        except (*DAMAGE, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            if done[:1] in ([], [0]) and len(done) <= 1:
                raise InputError(
                    f"{header.path.name}: its pixels are damaged or cut short: {reason}",
                    remedy="Fetch or export it again",
                ) from error
            self.warnings.append(f"ends at frame {done[-1]}, {self.count} frames were expected ({reason})")
