"""Pixels of DICOM files, put into one array as they are read.

Uncompressed pixels go from the file straight into their place; compressed ones through pydicom's decoders. Rescaled
values stay integers wherever that is exact.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.pixels import pixel_array as decode
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from omlab.cases import dicom_jpeg
from omlab.cases.dicom_header import DAMAGE, Header
from omlab.cases.dicom_series import Frame
from omlab.errors import InputError
from omlab.memory import usable_cpus

_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")


def refuse_undecodable(header: Header) -> None:
    """Raises :class:`omlab.errors.InputError` where no installed decoder handles the compression of a file."""
    if header.syntax in _UNCOMPRESSED:
        return
    uid = UID(header.syntax)
    dicom_jpeg.register()
    what = f"{header.path.name}: its pixels are compressed as {uid.name} ({header.syntax})"
    try:
        available = get_decoder(uid).is_available
    except NotImplementedError:
        raise InputError(
            f"{what}, which no decoder for Python handles",
            remedy="Decompress it first, say with: gdcmconv --raw IN OUT",
        ) from None
    if not available:
        raise InputError(
            f"{what}, and no decoder for it is installed", remedy="Install one with: pip install 'omlab[dicom]'"
        )


@contextmanager
def _decoding(header: Header) -> Iterator[None]:
    """Damage in pixels becomes one clear error, whichever of the decoders met it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (*DAMAGE, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{header.path.name}: its pixels are damaged or cut short: {reason[:300]}",
            remedy="Fetch or export it again",
        ) from error


def _stored_type(header: Header) -> np.dtype[Any]:
    bits = header.number("BitsAllocated")
    if bits not in (8, 16, 32):
        raise InputError(f"{header.path.name}: has {bits} bits a pixel, expected 8, 16 or 32")
    return np.dtype(f"<{'i' if header.get('PixelRepresentation', 0) else 'u'}{bits // 8}")


def volume(frames: Sequence[Frame]) -> NDArray[np.generic]:
    """[column, row, slice] of frames in slice order, rescaled; a view whose columns lie side by side in memory.

    The stored integers where the rescale is 1 and 0; else int16 or int32 where that is exact; else float32.

    Raises
    ------
    omlab.errors.InputError
        No decoder, damaged or truncated pixels, colour.
    """
    first = frames[0].header
    if int(first.get("SamplesPerPixel", 1)) != 1 or first.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise InputError(f"{first.path.name}: is a slice in colour, expected one number a voxel")
    for header in {id(f.header): f.header for f in frames}.values():
        refuse_undecodable(header)
    rows, columns = first.number("Rows"), first.number("Columns")
    _refuse_hollow(first, rows, columns)
    stored = _stored_type(first)
    writer = _Rescaled((len(frames), rows, columns), stored, frames)
    if all(f.header.pixels_at is not None for f in frames):
        _native(frames, stored, rows, columns, writer)
    else:
        _decoded(frames, stored, rows, columns, writer)
    return writer.array.transpose(2, 1, 0)


def _refuse_hollow(header: Header, rows: int, columns: int) -> None:
    if rows < 1 or columns < 1:
        raise InputError(f"{header.path.name}: is {rows} x {columns} pixels, expected at least one")


class _Rescaled:
    """Takes slices of stored values, in any order, and keeps the rescaled ones in the smallest exact type."""

    def __init__(self, shape: tuple[int, int, int], stored: np.dtype[Any], frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._stored = stored
        self.identity = all(f.slope == 1.0 and f.intercept == 0.0 for f in frames)
        whole = all(f.slope.is_integer() and f.intercept.is_integer() for f in frames)
        kind: Any = stored if self.identity else (np.int16 if whole and stored.itemsize <= 2 else np.int32)
        if not whole:
            kind = np.float32
        self.array: NDArray[Any] = np.empty(shape, kind)

    @property
    def settled(self) -> bool:
        """No slice can hold values that need another type, by the bits that it stores."""
        if self.identity or self.array.dtype.kind == "f":
            return True
        return all(self._fits(self._possible(frame)) for frame in self._frames)

    def put(self, k: int, values: NDArray[Any]) -> None:
        """Store slice ``k``, [row, column] of stored values."""
        frame = self._frames[k]
        slope, intercept = frame.slope, frame.intercept
        if self.array.dtype.kind != "f" and not self.identity:
            ends = self._ends(frame, values)
            # Values that do not fit move what is there into the next type: exact, and seldom.
            for wider in (np.int16, np.int32, np.float64):
                if self.array.dtype.itemsize > np.dtype(wider).itemsize:
                    continue
                if wider is np.float64 or (np.iinfo(wider).min <= ends[0] and ends[1] <= np.iinfo(wider).max):
                    if self.array.dtype != wider:
                        self.array = self.array.astype(wider)
                    break
        out = self.array[k]
        if self.identity:
            out[...] = values
        elif self.array.dtype.kind == "f":
            np.multiply(values, self.array.dtype.type(slope), out=out, casting="unsafe")
            out += self.array.dtype.type(intercept)
        else:
            wide = np.int64 if self.array.dtype.itemsize == 4 else np.int32
            if slope == 1.0 and self.array.dtype.itemsize == values.dtype.itemsize == 2 and abs(intercept) < 32768:
                # Sixteen-bit sums wrap around, and what fits in the end is right however it got there.
                np.add(values.view(np.int16), np.int16(intercept), out=out)
            else:
                out[...] = values.astype(wide) * wide(slope) + wide(intercept)

    def _ends(self, frame: Frame, values: NDArray[Any]) -> tuple[float, float]:
        """Least and greatest rescaled value: those that the stored bits allow if they fit, else those that occur."""
        ends = self._possible(frame)
        return ends if self._fits(ends) else _rescaled_ends(frame, int(values.min()), int(values.max()))

    def _possible(self, frame: Frame) -> tuple[float, float]:
        bits = int(frame.header.get("BitsStored", 8 * self._stored.itemsize))
        signed = self._stored.kind == "i"
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return _rescaled_ends(frame, low, high)

    def _fits(self, ends: tuple[float, float]) -> bool:
        limits = np.iinfo(self.array.dtype)
        return bool(limits.min <= ends[0] and ends[1] <= limits.max)


def _rescaled_ends(frame: Frame, low: int, high: int) -> tuple[float, float]:
    one, other = low * frame.slope + frame.intercept, high * frame.slope + frame.intercept
    return min(one, other), max(one, other)


def _native(frames: Sequence[Frame], stored: np.dtype[Any], rows: int, columns: int, writer: _Rescaled) -> None:
    """Straight from the files into the volume. Reading and arithmetic leave Python, so parts go side by side where no
    slice can change the type of all."""
    size = rows * columns * stored.itemsize
    workers = min(usable_cpus(), len(frames)) if writer.settled else 1

    def part(numbers: range) -> None:
        scratch = np.empty((rows, columns), stored)
        for k in numbers:
            target = writer.array[k] if writer.identity else scratch
            _read_into(target, frames[k], size)
            _drop_unused_bits(target, frames[k].header)
            if not writer.identity:
                writer.put(k, target)

    if workers == 1:
        part(range(len(frames)))
        return
    edges = [len(frames) * n // workers for n in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, [range(low, high) for low, high in itertools.pairwise(edges)]))


def _read_into(target: NDArray[Any], frame: Frame, size: int) -> None:
    """The stored values of a frame as the bytes of ``target``."""
    header, view, done = frame.header, memoryview(target).cast("B"), 0
    with open(header.path, "rb", buffering=0) as file:
        file.seek((header.pixels_at or 0) + frame.index * size)
        while done < size and (got := file.readinto(view[done:])):
            done += got
    if done < size:
        raise InputError(
            f"{header.path.name}: is cut short, {done} of {size} bytes of pixels are there",
            remedy="Fetch or export it again",
        )


def _drop_unused_bits(values: NDArray[Any], header: Header) -> None:
    """Bits outside of the stored ones may hold overlays; the sign must reach to the top."""
    bits, allocated = int(header.get("BitsStored", 0)), 8 * values.dtype.itemsize
    if not 0 < bits < allocated:
        return
    high = int(header.get("HighBit", bits - 1))
    unsigned = values.view(f"u{values.dtype.itemsize}")
    unsigned <<= max(0, allocated - 1 - high)
    values >>= allocated - bits


def _decoded(frames: Sequence[Frame], stored: np.dtype[Any], rows: int, columns: int, writer: _Rescaled) -> None:
    """Through pydicom; decoders leave Python, so slices are decoded side by side."""

    def one(k: int) -> tuple[int, NDArray[Any]]:
        frame = frames[k]
        with _decoding(frame.header):
            index = frame.index if frame.header.frames > 1 else None
            return k, decode(frame.header.path, index=index, raw=True)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        for first in range(0, len(frames), 64):  # few slices wait at a time
            for k, values in pool.map(one, range(first, min(first + 64, len(frames)))):
                header = frames[k].header
                if values.shape != (rows, columns):
                    raise InputError(f"{header.path.name}: decodes to {values.shape}, expected {(rows, columns)}")
                writer.put(k, values.astype(stored, copy=False))


def image(header: Header, index: int | None) -> tuple[NDArray[Any], int]:
    """([row, column] or [row, column, RGB] of one frame, bits in use).

    YBR becomes RGB, palettes are looked up, MONOCHROME1 is turned so that greater is brighter, and the rescale is
    applied.
    """
    refuse_undecodable(header)
    _refuse_hollow(header, header.number("Rows"), header.number("Columns"))
    with _decoding(header):
        if header.syntax in _UNCOMPRESSED or header.frames == 1:
            dataset = pydicom.dcmread(header.path, force=True)
            if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
                dataset.file_meta.TransferSyntaxUID = UID(header.syntax)
            pixels = decode(dataset, index=index)
        else:
            pixels = decode(header.path, index=index)
    bits = int(header.get("BitsStored", 8 * pixels.dtype.itemsize))
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        with _decoding(header):
            pixels = apply_color_lut(pixels, header.tags)
        narrow = pixels.dtype == np.uint8 or int(pixels.max(initial=0)) < 256
        return (pixels.astype(np.uint8), 8) if narrow else (pixels, 16)
    if pixels.ndim == 3:
        return pixels[:, :, :3], bits
    if photometric == "MONOCHROME1" and pixels.dtype.kind in "iu":
        top = 2**bits - 1 if pixels.dtype.kind == "u" else -1
        pixels = (top - pixels.astype(np.int64)).astype(pixels.dtype)
    return _image_rescaled(pixels, header), bits


def _image_rescaled(pixels: NDArray[Any], header: Header) -> NDArray[Any]:
    slope, intercept = float(header.get("RescaleSlope", 1.0)), float(header.get("RescaleIntercept", 0.0))
    if slope == 1.0 and intercept == 0.0:
        return pixels
    if slope.is_integer() and intercept.is_integer() and pixels.dtype.kind in "iu":
        values = pixels.astype(np.int64) * int(slope) + int(intercept)
        for kind in (np.int16, np.int32):
            if np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max:
                return values.astype(kind)
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
