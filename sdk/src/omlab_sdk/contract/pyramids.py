"""Slides of any size that take no room: TIFF pyramids in which tiles that look alike are one piece of the file.

A slide of 100,000 x 100,000 pixels takes about a megabyte, and reading it is as much work as reading a real one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE = 256
DOWNSAMPLES = (1, 4, 16, 64)
#: Looks of tissue: neighbouring tiles differ.
LOOKS = 6
_SHORT, _LONG, _RATIONAL, _LONG8 = 3, 4, 5, 16
_SIZES = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}


def write(
    path: Path,
    size: tuple[int, int],
    tissue: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]],
    *,
    downsamples: Sequence[int] = DOWNSAMPLES,
    mpp: float | None = 0.5,
) -> Path:
    """Write a BigTIFF of JPEG tiles.

    Parameters
    ----------
    size : (width, height) of level 0.
    tissue : for level-0 places x and y of middles of tiles, is it tissue there? Glass elsewhere.
    downsamples : of the levels.
    mpp : micrometres a pixel of level 0; the file does not tell it without.
    """
    looks = _looks()
    with open(path, "wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        places = []
        for look in looks:
            places.append((file.tell(), len(look)))
            file.write(look)
        link = 8
        for number, downsample in enumerate(downsamples):
            width, height = (max(1, n // downsample) for n in size)
            columns, rows = (-(-n // TILE) for n in (width, height))
            x = (np.arange(columns)[None, :] + 0.5) * TILE * downsample
            y = (np.arange(rows)[:, None] + 0.5) * TILE * downsample
            kinds = 1 + (np.arange(rows)[:, None] * 5 + np.arange(columns)[None, :] * 3) % LOOKS
            chosen = np.where(tissue(x, y), kinds, 0).ravel()
            offsets, counts = (np.array([p[i] for p in places])[chosen] for i in (0, 1))
            entries: list[tuple[int, int, list[int]]] = [
                (254, _LONG, [int(number > 0)]), (256, _LONG, [width]), (257, _LONG, [height]),
                (258, _SHORT, [8, 8, 8]), (259, _SHORT, [7]), (262, _SHORT, [6]), (277, _SHORT, [3]),
                (284, _SHORT, [1]), (322, _LONG, [TILE]), (323, _LONG, [TILE]), (324, _LONG8, offsets.tolist()),
                (325, _LONG, counts.tolist()),
            ]  # fmt: skip
            if mpp is not None:
                dots = [round(1e7 / (mpp * downsample)), 1000]  # pixels a centimetre
                entries += [(282, _RATIONAL, dots), (283, _RATIONAL, dots), (296, _SHORT, [3])]
            link = _directory(file, link, sorted(entries))
    return path


def disc(
    centre: tuple[float, float], radius: float
) -> Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]:
    """Round tissue, level-0 pixels."""
    return lambda x, y: (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def _looks() -> list[bytes]:
    """A tile of glass, and tiles of tissue, as JPEG."""
    import imagecodecs

    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:TILE, :TILE]
    tiles = [np.full((TILE, TILE, 3), 241, np.float64)]
    for number in range(LOOKS):
        cells = np.sin(rows / (7 + number)) * np.sin(columns / (9 + number))
        noise = generator.normal(0, 6, (TILE, TILE))
        tiles.append(np.stack([200 + 20 * cells + noise, 110 + 35 * cells + noise, 165 + 20 * cells + noise], axis=2))
    pictures = [np.clip(tile, 0, 255).astype(np.uint8) for tile in tiles]
    return [imagecodecs.jpeg_encode(p, level=80, colorspace="RGB", outcolorspace="YCBCR") for p in pictures]


def _directory(file: Any, link: int, entries: Sequence[tuple[int, int, list[int]]]) -> int:
    """Append a directory, and its place at ``link``; gives where the next one's place goes."""
    body = []
    for tag, kind, values in entries:
        packed = (
            struct.pack("<2I", *values) if kind == _RATIONAL else struct.pack(f"<{len(values)}{_SIZES[kind]}", *values)
        )
        count = 1 if kind == _RATIONAL else len(values)
        if len(packed) > 8:
            file.seek(0, 2)
            place = file.tell()
            file.write(packed)
            packed = struct.pack("<Q", place)
        body.append(struct.pack("<HHQ", tag, kind, count) + packed.ljust(8, b"\0"))
    file.seek(0, 2)
    start = file.tell()
    file.write(struct.pack("<Q", len(body)) + b"".join(body) + struct.pack("<Q", 0))
    end = file.tell() - 8
    file.seek(link)
    file.write(struct.pack("<Q", start))
    return int(end)
