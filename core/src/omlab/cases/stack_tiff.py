"""Stacks of planes in TIFF: one file of many pages, or a folder of files of one page."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.cases.slide_tiff import MAGIC, is_tiff, opened
from omlab.cases.stack import UNITS_UM, checked_dtype
from omlab.errors import InputError, first_line
from omlab.files import natural

_NEEDED, _EXTRA = "reading stacks of planes", "omlab[stacks]"
_AGAIN = "Fetch or export it again"


def _tiff(path: Path) -> Any:
    return opened(path, needed_for=_NEEDED, install=_EXTRA)


class FilePlanes:
    """Planes of one file (:class:`omlab.cases.stack.Planes`): plain pages, ImageJ's and OME's."""

    depth, format = 1, "tiff"

    def __init__(self, path: Path, *, frame: int | None = None) -> None:
        self._name, self._path = path.name, path
        self.warnings: list[str] = []
        self._tiff = _tiff(path)
        try:
            self._pages, self._raw = _laid_out(self._tiff, self._name, frame)
            first = self._tiff.pages.first
            self.spacing_um = _spacing(self._tiff, first)
        except InputError:
            self._tiff.close()
            raise
        except Exception as error:  # tifffile meets damage in many ways
            self._tiff.close()
            raise InputError(f"{self._name}: is damaged or cut short: {first_line(error)}", remedy=_AGAIN) from None
        self.dtype = checked_dtype(first.dtype, self._name)
        self.shape = (len(self._pages), int(first.imagelength), int(first.imagewidth))
        self.details: dict[str, Any] = {"pages": len(self._tiff.pages)}

    def __del__(self) -> None:
        tiff = getattr(self, "_tiff", None)
        if tiff is not None:
            tiff.close()

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """See :class:`omlab.cases.stack.Planes`."""
        out = np.empty((stop - first, *self.shape[1:]), self.dtype)
        for number in range(first, stop):
            out[number - first] = self._plane(number)
        return out

    def _plane(self, number: int) -> NDArray[Any]:
        page = self._pages[number]
        if self._raw is not None:  # pages without an entry of their own, one after another
            offset, dtype = self._raw
            bytes_of_one = self.shape[1] * self.shape[2] * dtype.itemsize
            handle = self._tiff.filehandle
            handle.seek(offset + page * bytes_of_one)
            data = handle.read(bytes_of_one)
            if len(data) < bytes_of_one:
                raise _damaged(self._name, number, f"{len(data)} of {bytes_of_one} bytes are there")
            return np.frombuffer(data, dtype).reshape(self.shape[1:])
        try:
            found = page.asarray()
        except Exception as error:  # each codec has errors of its own
            raise _damaged(self._name, number, first_line(error)) from None
        if found.shape != self.shape[1:]:
            raise _damaged(self._name, number, f"it decodes to {found.shape}")
        return np.asarray(found)


class FolderPlanes:
    """Planes of a folder of files of one page each, in the order in which a person would count them."""

    depth, format = 1, "tiff-folder"

    def __init__(self, folder: Path) -> None:
        self.files = [path for path in tiffs_in(folder) if is_page(path)]
        if not self.files:
            raise InputError(f"{folder}: holds no TIFF page", remedy="Name the folder that holds the planes")
        _complete([path.name for path in self.files], folder.name)
        self.warnings: list[str] = []
        sizes: list[tuple[int, int]] = []
        for path in self.files:
            with _tiff(path) as tiff:
                page = tiff.pages.first
                _grey(page, path.name)
                sizes.append((int(page.imagelength), int(page.imagewidth)))
                if len(sizes) == 1:
                    self.dtype, self.spacing_um = checked_dtype(page.dtype, path.name), _spacing(tiff, page)
                if sizes[-1] != sizes[0]:
                    raise _sizes(path.name, sizes[-1], self.files[0].name, sizes[0])
                if page.dtype.newbyteorder("=") != self.dtype:
                    raise InputError(f"{path.name}: is of type {page.dtype}, {self.files[0].name} of {self.dtype}")
                _there(page, tiff.filehandle.size, path.name, 0)
        self.shape = (len(self.files), *sizes[0])
        self.details: dict[str, Any] = {"first": self.files[0].name, "last": self.files[-1].name}

    def read(self, first: int, stop: int) -> NDArray[Any]:
        """See :class:`omlab.cases.stack.Planes`."""
        out = np.empty((stop - first, *self.shape[1:]), self.dtype)
        for number in range(first, stop):
            path = self.files[number]
            with _tiff(path) as tiff:
                try:
                    found = tiff.pages.first.asarray()
                except Exception as error:  # each codec has errors of its own
                    raise InputError(f"{path.name}: is damaged: {first_line(error)}", remedy=_AGAIN) from None
            if found.shape != self.shape[1:]:
                raise InputError(f"{path.name}: is damaged, it decodes to {found.shape}", remedy=_AGAIN)
            out[number - first] = found
        return out


def tiffs_in(folder: Path) -> list[Path]:
    """TIFF files of a folder, without its subfolders, in the order in which a person would count them."""
    inside = (p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.stat().st_size > 8)
    return sorted((p for p in inside if is_tiff(p)), key=lambda path: natural(path.name.lower()))


def is_page(path: Path) -> bool:
    """Does the file hold one page? True where its structure is damaged: the reader then says so."""
    with open(path, "rb") as file:
        start = file.read(16)
        if not start.startswith(MAGIC):
            return False
        order = "<" if start.startswith(b"II") else ">"
        big = start[2:4] in (b"+\0", b"\0+")
        entry, width, place, link = (20, "Q", 8, 8) if big else (12, "H", 4, 4)
        where = struct.unpack(order + ("Q" if big else "I"), start[place : place + link])[0]
        file.seek(where)
        count = file.read(struct.calcsize(width))
        if len(count) < struct.calcsize(width):
            return True
        file.seek(struct.unpack(order + width, count)[0] * entry, 1)
        following = file.read(link)
        if len(following) < link or any(following):
            return len(following) < link
    # One entry may still stand for many planes: ImageJ keeps those of large files without any.
    with _tiff(path) as tiff:
        try:
            return int(np.prod(tiff.series[0].shape[:-2], dtype=np.int64)) <= 1 or tiff.pages.first.samplesperpixel > 1
        except Exception:  # tifffile meets damage in many ways; reading it will say what it is
            return True


def _laid_out(tiff: Any, name: str, frame: int | None) -> tuple[Sequence[Any], tuple[int, np.dtype[Any]] | None]:
    """The pages of the planes in order; or their numbers, with the place and type of the first, where pages have no
    entry of their own."""
    first = tiff.pages.first
    _grey(first, name)
    if not (tiff.is_ome or tiff.is_imagej or tiff.is_shaped):
        if frame:
            raise InputError(f"{name}: has one channel, asked for number {frame}")
        return _plain(tiff, name), None
    series = tiff.series[0]
    axes, shape = series.axes, series.shape
    if axes[-2:] != "YX":
        raise InputError(f"{name}: has axes {axes}, expected planes")
    found, told = int(np.prod(shape[:-2], dtype=np.int64)), _announced(tiff)
    if found < told:
        raise InputError(f"{name}: is cut short, {found} of {told} planes are there", remedy=_AGAIN)
    chosen = _numbers(axes[:-2], shape[:-2], name, frame)
    if series.dataoffset is not None:
        end = series.dataoffset + series.nbytes
        if end > tiff.filehandle.size:
            raise InputError(
                f"{name}: is cut short, {tiff.filehandle.size} of {end} bytes are there", remedy=_AGAIN
            )  # fmt: skip
        return chosen, (int(series.dataoffset), first.dtype.newbyteorder(tiff.byteorder))
    if len(series.pages) <= max(chosen):
        raise InputError(f"{name}: holds {len(series.pages)} planes, by its description {max(chosen) + 1}")
    pages = [series.pages[number] for number in chosen]
    lacking = [number for number, page in enumerate(pages) if page is None]
    if lacking:
        raise InputError(
            f"{name}: {len(lacking)} of {len(pages)} planes are missing, first plane {lacking[0]}", remedy=_AGAIN
        )
    for number, page in enumerate(pages):
        _there(page, page.parent.filehandle.size, name, number)
    return pages, None


def _announced(tiff: Any) -> int:
    """How many planes ImageJ's or tifffile's description tells of; 0 where it tells nothing."""
    if tiff.is_imagej:
        return int((tiff.imagej_metadata or {}).get("images", 0))
    if tiff.is_shaped and tiff.shaped_metadata:
        return int(np.prod(tiff.shaped_metadata[0].get("shape", (0, 0, 0))[:-2], dtype=np.int64))
    return 0


def _numbers(axes: str, shape: Sequence[int], name: str, frame: int | None) -> list[int]:
    """Numbers of pages that are the planes of one channel at one time."""
    long = [axis for axis in range(len(axes)) if shape[axis] > 1]
    along = next((axis for axis in long if axes[axis] == "Z"), long[-1] if long else None)
    others = [axis for axis in long if axis != along]
    count = int(np.prod([shape[axis] for axis in others], dtype=np.int64))
    if frame is None and count > 1:
        raise InputError(
            f"{name}: holds {count} channels or times ({axes}YX, {' x '.join(map(str, shape))} planes), expected one",
            remedy=f"Choose one with --frame 0 to {count - 1}",
        )
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"{name}: has no channel {frame}", remedy=f"It has 0 to {count - 1}")
    numbers = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    order = np.moveaxis(numbers, along, -1) if along is not None else numbers
    return [int(n) for n in order.reshape(count, -1)[frame or 0]]


def _plain(tiff: Any, name: str) -> list[Any]:
    """Every page but smaller copies; they must be alike."""
    tiff.pages.useframes = False
    pages = [page for page in tiff.pages if not (int(page.subfiletype) & 1)]
    size, dtype = (pages[0].imagelength, pages[0].imagewidth), pages[0].dtype
    for number, page in enumerate(pages):
        _grey(page, name, number)
        found = (page.imagelength, page.imagewidth)
        if found != size:
            raise _sizes(f"{name}, page {number}", found, "page 0", size)
        if page.dtype != dtype:
            raise InputError(f"{name}: page {number} is of type {page.dtype}, page 0 of {dtype}")
        _there(page, tiff.filehandle.size, name, number)
    _followed(tiff, name)
    return pages


def _followed(tiff: Any, name: str) -> None:
    """Raise unless the last page that was found is the last one that the file has."""
    tiff.filehandle.seek(tiff.pages[-1].offset)
    order, big = tiff.byteorder, tiff.is_bigtiff
    count = struct.unpack(order + ("Q" if big else "H"), tiff.filehandle.read(8 if big else 2))[0]
    tiff.filehandle.seek(count * (20 if big else 12), 1)
    if any(tiff.filehandle.read(8 if big else 4)):
        raise InputError(f"{name}: is cut short after page {len(tiff.pages) - 1}", remedy=_AGAIN)


def _grey(page: Any, name: str, number: int | None = None) -> None:
    where = name if number is None else f"{name}, page {number}"
    if int(page.samplesperpixel) != 1:
        raise InputError(
            f"{where}: is in colour ({page.samplesperpixel} values a pixel), expected one value a pixel",
            remedy="Save the channel of interest alone",
        )
    if page.dtype is None or int(page.imagedepth) != 1:
        raise InputError(f"{where}: is no plane of numbers")


def _there(page: Any, size: int, name: str, number: int) -> None:
    """Raise unless all bytes of a page lie within the file."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if not offsets or len(offsets) != len(counts):
        raise _damaged(name, number, "its data are not in the file")
    end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    if end > size:
        raise _damaged(name, number, f"it ends at byte {end}, the file at {size}")


def _damaged(name: str, number: int, why: str) -> InputError:
    return InputError(f"{name}: page {number} is damaged or cut short: {why}", remedy=_AGAIN)


def _sizes(name: str, found: Sequence[int], first: str, size: Sequence[int]) -> InputError:
    return InputError(
        f"{name}: is {found[0]} x {found[1]} pixels, {first} is {size[0]} x {size[1]}",
        remedy="Planes of a stack have one size: take out what does not belong to it",
    )


def _complete(names: Sequence[str], folder: str) -> None:
    """Raise :class:`InputError` where the numbers of files have gaps, or several stacks lie in one folder."""
    if len(names) < 2:
        return
    split = [re.split(r"(\d+)", name) for name in names]
    alike = len({len(parts) for parts in split}) == 1
    columns = [[int(parts[n]) for parts in split] for n in range(1, len(split[0]), 2)] if alike else []
    unique = [column for column in columns if len(set(column)) == len(column)]
    if not unique:
        raise InputError(
            f"{folder}: its files are not numbered from plane to plane, say {names[0]} and {names[1]}",
            remedy="Put the planes of one channel into a folder of their own, numbered",
        )
    steps = [np.diff(sorted(column)).tolist() for column in unique]
    usual = [min(Counter(s).items(), key=lambda item: (-item[1], item[0]))[0] for s in steps]
    odd = [sum(step != u for step in s) for s, u in zip(steps, usual, strict=True)]
    best = int(np.argmin(odd))
    if not odd[best]:
        return
    column, step = sorted(unique[best]), usual[best]
    gaps = [(a, b) for a, b in pairwise(column) if b - a != step]
    lacking = sum(max(1, (b - a) // step - 1) for a, b in gaps)
    a, b = gaps[0]
    raise InputError(
        f"{folder}: {lacking} planes are missing, first between number {a} and number {b}",
        remedy="Put them there; or number the files without gaps if nothing is missing",
    )


def _spacing(tiff: Any, page: Any) -> tuple[float, float, float] | None:
    """Micrometres (z, y, x), where the file tells all three."""
    if tiff.is_ome:
        return _ome_spacing(tiff.ome_metadata or "")
    if not tiff.is_imagej:
        return None
    told = tiff.imagej_metadata or {}
    unit = str(told.get("unit", "")).replace("\\u00B5", "u").replace("µ", "u").strip().lower()
    factor = UNITS_UM.get(unit)
    tags = [page.tags.get(name) for name in ("YResolution", "XResolution")]
    if factor is None or None in tags or not told.get("spacing"):
        return None
    across = [tag.value[1] / tag.value[0] if tag.value[0] else 0.0 for tag in tags]
    y, x = (factor * value for value in across)
    return abs(float(told["spacing"])) * factor, y, x


def _ome_spacing(xml: str) -> tuple[float, float, float] | None:
    found = []
    for axis in "ZYX":
        size = re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', xml)
        unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
        factor = UNITS_UM.get(unit.group(1).replace("µ", "u") if unit else "um")
        if size is None or factor is None:
            return None
        found.append(float(size.group(1)) * factor)
    return found[0], found[1], found[2]
