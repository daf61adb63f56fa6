"""Slides in TIFF: tiles are decoded when they are asked for, and the last ones kept."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, first_line, require

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: Decoded tiles that are kept of each slide, in bytes: two columns of 256 pixels of a slide 100,000 high. Patches come
#: column by column and lie across two columns of tiles, so the next column finds what it shares with the one before.
CACHE_BYTES = 2 * 256 * 100_000 * 3
#: A strip or tile that is larger than this, decoded, cannot be read in part.
LARGEST_SEGMENT = 2**28
#: Levels are the same picture: their sides keep their proportion up to this.
ASPECT = 0.02
#: Micrometres a pixel that a microscope gives; a file that tells others has a resolution for printing.
PLAUSIBLE_MPP = (0.02, 20.0)
#: Aperio's JPEG 2000 in YCbCr, whose colours only OpenSlide turns back.
_APERIO_YCBCR = 33003
_UNITS = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3}


def is_tiff(path: Path) -> bool:
    """Does it begin like a TIFF or BigTIFF file?"""
    with open(path, "rb") as file:
        return file.read(4) in MAGIC


def foreign(path: Path) -> bool:
    """Is it a format that OpenSlide is needed for?"""
    if not is_tiff(path):
        return True
    with opened(path) as tiff:
        if tiff.is_ndpi or tiff.is_scn or tiff.is_bif or tiff.is_philips:
            return True
        return int(tiff.pages.first.compression) == _APERIO_YCBCR


def looks_like_slide(path: Path, least_pixels: int) -> bool:
    """Is this TIFF a pyramid, or larger than ``least_pixels``? False where it cannot be read."""
    try:
        with opened(path) as tiff:
            first = tiff.pages.first
            return len(_level_pages(tiff)) > 1 or first.imagewidth * first.imagelength > least_pixels
    except InputError:
        return False


def opened(path: Path, *, needed_for: str = "reading slides", install: str = "omlab[slides]") -> Any:
    """The file, opened by tifffile. Raises :class:`omlab.errors.InputError` where it is missing or damaged."""
    tifffile = require("tifffile", needed_for=needed_for, install=install)
    # It tells the terminal of oddities in tags that nothing depends on.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        tiff = tifffile.TiffFile(path)
        if not len(tiff.pages):
            raise InputError(f"{path.name}: is damaged, it holds no picture", remedy="Fetch or export it again")
        _ = tiff.pages.first.imagewidth
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except (tifffile.TiffFileError, OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(
            f"{path.name}: is damaged or cut short: {first_line(error)}", remedy="Fetch or export it again"
        ) from None
    return tiff


def _level_pages(tiff: Any) -> list[Any]:
    """Pages that hold the same picture, the largest first: those that the file marks as one pyramid, and other tiled
    pages of the same proportions."""
    series = tiff.series[0]
    marked = [level.pages[0] for level in series.levels]
    pages = [getattr(page, "aspage", lambda p=page: p)() for page in marked]
    if not pages:
        pages = [tiff.pages.first]
    base = pages[0]
    known = {page.offset for page in pages} | {page.offset for page in series.pages if page is not None}
    for page in tiff.pages:
        if page.offset in known or not page.is_tiled or page.imagewidth >= base.imagewidth:
            continue
        ratio = (base.imagewidth / page.imagewidth) / (base.imagelength / page.imagelength)
        # A level may be rounded up to a whole pixel.
        slack = ASPECT + 2 / min(page.imagewidth, page.imagelength)
        if abs(ratio - 1) <= slack and page.samplesperpixel == base.samplesperpixel:
            pages.append(page)
    return sorted(pages, key=lambda page: -page.imagewidth)


class TiffPixels:
    """See :class:`omlab.cases.slide.Pixels`. Tiles are read with positioned reads, so threads share one file."""

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._name = path.name
        with opened(path) as tiff:
            try:
                pages = _level_pages(tiff)
                planes = len(tiff.series[0].pages)
                vendor = "aperio" if tiff.is_svs else "ome" if tiff.is_ome else "tiff"
                self.mpp, self.magnification = _scale(tiff, pages[0])
            except InputError:
                raise
            except Exception as error:  # tifffile meets damage in many ways
                raise InputError(
                    f"{path.name}: is damaged or cut short: {first_line(error)}", remedy="Fetch or export it again"
                ) from None
            self._levels = [_Level(page, self._name) for page in pages]
        self.levels = [(level.width, level.height) for level in self._levels]
        self.details: dict[str, Any] = {"vendor": vendor, "tile": [self._levels[0].across, self._levels[0].down]}
        self.warnings: list[str] = []
        if planes > 1:
            self.warnings.append(f"it holds {planes} planes, the first is read")
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as the slide is)
        self._file_lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._room = self._limit = cache_bytes

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """[row, column, RGB]; raises :class:`omlab.errors.InputError` where a tile is damaged."""
        of = self._levels[level]
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // of.down, (y + height - 1) // of.down + 1):
            for column in range(x // of.across, (x + width - 1) // of.across + 1):
                tile = self._tile(level, row * of.columns + column)
                top, left = row * of.down, column * of.across
                y0, x0 = max(y, top), max(x, left)
                y1, x1 = min(y + height, top + of.down), min(x + width, left + of.across)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _tile(self, level: int, index: int) -> NDArray[np.uint8]:
        key = (level, index)
        with self._cache_lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                return found
        # Two threads may decode the same tile at once: that is rarer, and cheaper, than all waiting for one.
        found = self._levels[level].decode(index, self._bytes)
        with self._cache_lock:
            if key not in self._cache:
                self._cache[key] = found
                self._room -= found.nbytes
            while self._room < 0 and len(self._cache) > 1:
                _, dropped = self._cache.popitem(last=False)
                self._room += dropped.nbytes
        return found

    def _bytes(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            parts = []
            while count:
                part = os.pread(self._file.fileno(), count, offset)
                if not part:
                    break
                parts.append(part)
                offset, count = offset + len(part), count - len(part)
            return b"".join(parts)
        with self._file_lock:
            self._file.seek(offset)
            return self._file.read(count) or b""


class _Level:
    """One page: where its tiles or strips lie, and how they become RGB."""

    def __init__(self, page: Any, name: str) -> None:
        self._page, self._name = page, name
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        if page.is_tiled:
            self.across, self.down = int(page.tilewidth), int(page.tilelength)
        else:
            self.across, self.down = self.width, int(min(page.rowsperstrip, self.height))
        self.columns = -(-self.width // self.across)
        self.rows = -(-self.height // self.down)
        self._samples = int(page.samplesperpixel)
        self._separate = int(page.planarconfig) == 2 and self._samples > 1
        bits = page.bitspersample
        if page.sampleformat not in (1, None) or bits not in (8, 16):
            raise InputError(f"{name}: has {bits} bits a colour, slides have 8 or 16 of whole numbers")
        self._shift = 8 if bits == 16 else 0
        inside = self.across * self.down * self._samples * (bits // 8)
        # Uncompressed strips can be read in part, whatever their size.
        self._raw = not page.is_tiled and int(page.compression) == 1 and page.is_contiguous and not self._separate
        if self._raw:
            self.down = max(1, min(self.height, 2**22 // max(1, self.across * self._samples * (bits // 8))))
            self.rows = -(-self.height // self.down)
        elif inside > LARGEST_SEGMENT:
            raise InputError(
                f"{name}: is not tiled: {self.down} rows of {self.width} pixels are stored as one piece, which cannot "
                "be read in part",
                remedy="Convert it to a pyramid of tiles, say with: vips tiffsave IN OUT --tile --pyramid",
            )
        self._offsets, self._counts = page.dataoffsets, page.databytecounts
        _ = page.decode  # made here once: threads only call it

    def decode(self, index: int, read: Any) -> NDArray[np.uint8]:
        """A tile as [row, column, RGB]; raises :class:`omlab.errors.InputError` where it is damaged."""
        if self._raw:
            return self._to_rgb(self._rows(index, read))
        if not self._separate:
            return self._to_rgb(self._segment(index, index, read))
        step = self.columns * self.rows
        return self._to_rgb(
            np.concatenate([self._segment(index + n * step, index, read) for n in range(self._samples)], axis=2)
        )

    def _rows(self, index: int, read: Any) -> NDArray[Any]:
        dtype = self._page.dtype.newbyteorder(self._page.parent.byteorder)
        top = index * self.down
        count = min(self.down, self.height - top)
        line = self.width * self._samples * dtype.itemsize
        data = read(self._offsets[0] + top * line, count * line)
        if len(data) < count * line:
            raise self._damaged(index, f"{len(data)} of {count * line} bytes are there")
        return np.frombuffer(data, dtype).reshape(count, self.width, self._samples)

    def _segment(self, number: int, index: int, read: Any) -> NDArray[Any]:
        """[row, column, sample] of a tile or strip, full size."""
        try:
            offset, count = self._offsets[number], self._counts[number]
        except IndexError:
            raise self._damaged(index, "it is not in the file") from None
        shape = (self.down, self.across, 1 if self._separate else self._samples)
        if not count:  # a tile that the scanner left out
            return np.zeros(shape, self._page.dtype)
        data = read(offset, count)
        if len(data) < count:
            raise self._damaged(index, f"{len(data)} of {count} bytes are there")
        try:
            found, _, _ = self._page.decode(data, number, jpegtables=self._page.jpegtables)
        except Exception as error:  # each codec has errors of its own
            raise self._damaged(index, first_line(error)) from None
        return np.asarray(found)[0]  # type: ignore[no-any-return]

    def _damaged(self, index: int, why: str) -> InputError:
        place = f"({index % self.columns * self.across}, {index // self.columns * self.down})"
        return InputError(
            f"{self._name}: is damaged at {place} of the level of {self.width} x {self.height} pixels: {why}",
            remedy="Fetch or export it again",
        )

    def _to_rgb(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        photometric = int(self._page.photometric)
        if photometric == 3:  # a palette of 16-bit colours
            return np.ascontiguousarray((self._page.colormap >> 8).astype(np.uint8).T[values[:, :, 0]])
        eight = (values >> self._shift).astype(np.uint8) if self._shift else np.asarray(values, np.uint8)
        if eight.shape[2] < 3:
            grey = 255 - eight[:, :, :1] if photometric == 0 else eight[:, :, :1]
            return np.repeat(grey, 3, axis=2)
        return np.ascontiguousarray(eight[:, :, :3])


def _scale(tiff: Any, page: Any) -> tuple[tuple[float, float] | None, float | None]:
    """Micrometres a pixel and magnification, where the file tells them."""
    text = page.description or ""
    mpp: tuple[float, float] | None = None
    power = re.search(r"AppMag\s*=\s*([\d.]+)", text)
    magnification = float(power.group(1)) if power else None
    told = re.search(r"\bMPP\s*=\s*([\d.]+)", text)
    if told:
        mpp = (float(told.group(1)),) * 2
    elif tiff.is_ome:
        mpp, magnification = _ome_scale(tiff.ome_metadata or "")
    if mpp is None:
        mpp = _resolution(page)
    if mpp is not None and not all(PLAUSIBLE_MPP[0] <= v <= PLAUSIBLE_MPP[1] for v in mpp):
        mpp = None
    return mpp, magnification or None


def _ome_scale(xml: str) -> tuple[tuple[float, float] | None, float | None]:
    found: dict[str, float] = {}
    for axis in "XY":
        size = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        factor = _UNITS.get(unit.group(1) if unit else "µm")
        if size and factor:
            found[axis] = float(size.group(1)) * factor
    power = re.search(r'NominalMagnification="([\d.]+)"', xml)
    mpp = (found["X"], found.get("Y", found["X"])) if "X" in found else None
    return mpp, float(power.group(1)) if power else None


def _resolution(page: Any) -> tuple[float, float] | None:
    unit = {2: 25400.0, 3: 10000.0}.get(int(getattr(page, "resolutionunit", 1) or 1))
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if unit is None or None in tags:
        return None
    values = [tag.value[0] / tag.value[1] if tag.value[1] else 0.0 for tag in tags]
    if min(values) <= 0:
        return None
    return unit / values[0], unit / values[1]
