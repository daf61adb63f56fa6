"""Whole slides: pyramids of tiles that are far larger than memory. Pixels are read when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.types import Case, Source
from omlab.errors import InputError, UsageError
from omlab.vocabulary import InputKind

if TYPE_CHECKING:
    Rgb = NDArray[np.uint8]

#: A picture of a whole slide has at most so many pixels; a level with more is shrunk tile by tile.
WHOLE_PIXELS = 10**8
#: Overviews of up to so many pixels are kept for the next who asks.
_KEPT_PIXELS = 2**24
#: Magnification times micrometres a pixel, of the common objectives (20x is about 0.5).
_MAGNIFICATION_MPP = 10.0
_OBJECTIVES = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 100.0)


class Pixels(Protocol):
    """Where a slide's pixels come from. Reading must be safe from several threads at once."""

    #: (width, height) of each level, the largest first.
    levels: Sequence[tuple[int, int]]
    #: Micrometres a pixel of level 0, (x, y); ``None`` where the file does not tell.
    mpp: tuple[float, float] | None
    #: Power of the objective; ``None`` where the file does not tell.
    magnification: float | None
    #: What the reader found.
    details: dict[str, Any]
    #: What a user should know of the file.
    warnings: list[str]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Rgb:
        """[row, column, RGB] of a box that lies within the level, in pixels of that level."""
        ...


@attrs.frozen(eq=False, kw_only=True)
class Slide(Case):
    """A whole slide. Places are pixels of level 0, (x, y); nothing is in memory but what was just asked for.

    Attributes
    ----------
    pixels_from : the reader.
    mpp : micrometres a pixel of level 0, (x, y); ``None`` where nobody knows.
    magnification : power of the objective, by the file or by ``mpp`` (:attr:`magnification_known` says which).
    """

    pixels_from: Pixels
    mpp: tuple[float, float] | None = None
    magnification: float | None = None
    kind = InputKind.SLIDE
    _overviews: dict[Any, Any] = attrs.field(factory=dict, repr=False, init=False)
    _lock: Any = attrs.field(factory=threading.Lock, repr=False, init=False)

    @property
    def stem(self) -> str:
        """Name of the file without its last extension, as slides are called in tables."""
        return Path(self.name).stem

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level, the largest first."""
        return tuple(self.pixels_from.levels)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.levels[0]

    @property
    def downsamples(self) -> tuple[tuple[float, float], ...]:
        """Level-0 pixels of a pixel of each level, (x, y)."""
        width, height = self.size
        return tuple((width / w, height / h) for w, h in self.levels)

    def best_level(self, downsample: float) -> int:
        """The coarsest level that still has the detail of ``downsample``: the largest downsample up to it."""
        averages = [(dx + dy) / 2 for dx, dy in self.downsamples]
        return max((i for i, d in enumerate(averages) if d <= downsample), key=lambda i: averages[i], default=0)

    def stated(self, *, mpp: float | None = None, magnification: float | None = None) -> Slide:
        """The same slide with a scale that the user states; it wins over that of the file.

        Raises
        ------
        omlab.errors.UsageError
            The number is not positive.
        """
        for what, value in (("micrometres a pixel", mpp), ("magnification", magnification)):
            if value is not None and not value > 0:
                raise UsageError(f"{what} of the slide is {value:g}, a positive number was expected")
        changed: dict[str, Any] = {}
        if mpp is not None:
            changed = {"mpp": (mpp, mpp), "magnification": magnification_of(mpp)}
        if magnification is not None:
            changed["magnification"] = magnification
            changed.setdefault("mpp", self.mpp or (_MAGNIFICATION_MPP / magnification,) * 2)
        return attrs.evolve(self, **changed) if changed else self

    def to_pixels(self, places_um: NDArray[Any] | Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Places in micrometres (x, y) from the upper left corner, as level-0 pixels.

        Raises
        ------
        omlab.errors.InputError
            The slide does not say how large its pixels are.
        """
        return np.asarray(places_um, np.float64) / np.asarray(self._scale(), np.float64)

    def to_micrometres(self, places: NDArray[Any] | Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """The inverse of :meth:`to_pixels`, with its error."""
        return np.asarray(places, np.float64) * np.asarray(self._scale(), np.float64)

    def _scale(self) -> tuple[float, float]:
        if self.mpp is None:
            raise InputError(
                f"{self.name}: does not say how many micrometres its pixels have",
                remedy="Give places in pixels, or state its scale",
            )
        return self.mpp

    def region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Rgb:
        """[row, column, RGB] uint8 of ``width`` x ``height`` pixels of ``level`` from the level-0 place (x, y).

        What lies outside of the slide is black.

        Raises
        ------
        IndexError
            There is no such level.
        omlab.errors.InputError
            The file is damaged there.
        """
        if not 0 <= level < len(self.levels):
            raise IndexError(f"{self.name} has levels 0 to {len(self.levels) - 1}, asked for {level}")
        dx, dy = self.downsamples[level]
        return self._box(level, int(np.floor(x / dx)), int(np.floor(y / dy)), width, height)

    def _box(self, level: int, left: int, top: int, width: int, height: int) -> Rgb:
        whole_width, whole_height = self.levels[level]
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(whole_width, left + width), min(whole_height, top + height)
        if (x0, y0, x1, y1) == (left, top, left + width, top + height):
            return self.pixels_from.read(level, left, top, width, height)
        out = np.zeros((height, width, 3), np.uint8)
        if x1 > x0 and y1 > y0:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = self.pixels_from.read(level, x0, y0, x1 - x0, y1 - y0)
        return out

    def overview(self, *, level: int = -1, downsample: float = 64.0) -> tuple[Rgb, tuple[float, float]]:
        """The whole slide as a picture [row, column, RGB], and the level-0 pixels (x, y) of one of its pixels.

        Parameters
        ----------
        level : this level; -1 takes the best one for ``downsample``. One of more than 10^8 pixels, as of a slide that
            has no small level, is read tile by tile and shrunk by a whole factor to about ``downsample``.

        Raises
        ------
        omlab.errors.InputError
            There is no such level, or the file is damaged.
        """
        if level >= len(self.levels):
            raise InputError(f"{self.name}: has no level {level}, it has 0 to {len(self.levels) - 1}")
        chosen = self.best_level(downsample) if level < 0 else level
        key = (chosen, downsample)
        with self._lock:
            if key in self._overviews:
                return self._overviews[key]  # type: ignore[no-any-return]
            width, height = self.levels[chosen]
            dx, dy = self.downsamples[chosen]
            if width * height <= WHOLE_PIXELS:
                found = self.pixels_from.read(chosen, 0, 0, width, height), (dx, dy)
            else:
                least = int(np.ceil((width * height / WHOLE_PIXELS) ** 0.5))
                factor = max(least, round(downsample / dx))
                found = self._shrunk(chosen, factor), (dx * factor, dy * factor)
            if found[0].shape[0] * found[0].shape[1] <= _KEPT_PIXELS:
                self._overviews[key] = found
            return found

    def thumbnail(self, side: int) -> Rgb:
        """The whole slide with a longer side of at most ``side`` pixels."""
        from PIL import Image as Pillow

        rgb, _ = self.overview(downsample=max(1.0, max(self.size) / max(1, side)))
        picture = Pillow.fromarray(rgb)
        # Box averages over whole pixels first: exact enough for the eye, and fast on large pictures.
        picture.thumbnail((side, side), Pillow.Resampling.BICUBIC, reducing_gap=2.0)
        return np.asarray(picture)

    def _shrunk(self, level: int, factor: int) -> Rgb:
        """A level shrunk by averaging ``factor`` x ``factor`` pixels; what is left over at the far borders is cut."""
        from omlab.memory import usable_cpus

        width, height = (max(1, n // factor) for n in self.levels[level])
        out = np.zeros((height, width, 3), np.uint8)
        block = max(1, 2048 // factor)

        def fill(top: int) -> None:
            rows = min(block, height - top)
            for left in range(0, width, block):
                columns = min(block, width - left)
                box = self._box(level, left * factor, top * factor, columns * factor, rows * factor)
                split = box.reshape(rows, factor, columns, factor, 3)
                # Rows first, in whole numbers: a whole block as floating point would be eight times its size.
                sums = split.sum(axis=1, dtype=np.uint32).sum(axis=2)
                out[top : top + rows, left : left + columns] = (sums + factor**2 // 2) // factor**2

        with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="omlab-overview") as pool:
            for _ in pool.map(fill, range(0, height, block)):
                pass
        return out


def magnification_of(mpp: float) -> float:
    """Power of the objective that gives about so many micrometres a pixel: the nearest common one."""
    return min(_OBJECTIVES, key=lambda power: abs(np.log(_MAGNIFICATION_MPP / mpp / power)))


def read(path: str | Path) -> Slide:
    """Open a slide: a TIFF pyramid, or any format of OpenSlide.

    Raises
    ------
    omlab.errors.InputError
        It is missing, damaged, or no slide.
    omlab.errors.MissingDependency
        The library for its format is not installed.
    """
    path = Path(path)
    from omlab.cases import slide_openslide, slide_tiff

    pixels: Pixels
    pixels = slide_openslide.OpenSlidePixels(path) if slide_tiff.foreign(path) else slide_tiff.TiffPixels(path)
    return of_pixels(pixels, path.name, path=path)


def of_pixels(pixels: Pixels, name: str, *, path: Path | None = None) -> Slide:
    """A slide of any source of pixels; with what is odd about it as warnings."""
    warnings = list(pixels.warnings)
    mpp, magnification = pixels.mpp, pixels.magnification
    if magnification is None and mpp is not None:
        magnification = magnification_of(sum(mpp) / 2)
        warnings.append(f"its magnification is not told; {mpp[0]:.3g} micrometres a pixel are about {magnification:g}x")
    elif magnification is None:
        warnings.append("neither its magnification nor the size of its pixels is told; patches are taken as scanned")
    if len(pixels.levels) == 1 and pixels.levels[0][0] * pixels.levels[0][1] > WHOLE_PIXELS:
        warnings.append("it has one level only: all of it is read once for an overview")
    details = pixels.details | {
        "levels": [list(level) for level in pixels.levels], "mpp": list(mpp) if mpp else None,
        "magnification": magnification,
    }  # fmt: skip
    files = (path,) if path else ()
    source = Source(path=path, format="slide", files=files, details=details, warnings=tuple(warnings))
    return Slide(name=name, source=source, pixels_from=pixels, mpp=mpp, magnification=magnification)
