"""Slides of the scanners' own formats, through OpenSlide (Goode et al. 2013)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, require

#: Endings of files that OpenSlide knows and whose first bytes do not tell.
SUFFIXES = (".mrxs", ".vms", ".vmu", ".svslide", ".czi")
#: Bytes of decoded tiles that OpenSlide keeps of each slide: as many as of TIFF (see there), with four a pixel.
CACHE_BYTES = 2 * 256 * 100_000 * 4


class OpenSlidePixels:
    """See :class:`omlab.cases.slide.Pixels`. OpenSlide itself may be called from any thread."""

    def __init__(self, path: Path) -> None:
        openslide = require("openslide", needed_for=f"reading {path.name}", install="omlab[slides]")
        self._name, self._errors = path.name, (openslide.OpenSlideError, OSError)
        try:
            self._slide = openslide.OpenSlide(path)
            self._slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        except FileNotFoundError:
            raise InputError(f"{path}: does not exist") from None
        except openslide.OpenSlideUnsupportedFormatError:
            raise InputError(f"{path.name}: is no slide that OpenSlide or tifffile reads") from None
        except self._errors as error:
            raise InputError(
                f"{path.name}: is damaged or cut short: {error}", remedy="Fetch or export it again"
            ) from None
        found = self._slide.properties
        self.levels = [(int(w), int(h)) for w, h in self._slide.level_dimensions]
        self.mpp = _pair(found.get("openslide.mpp-x"), found.get("openslide.mpp-y"))
        self.magnification = _number(found.get("openslide.objective-power"))
        self.details: dict[str, Any] = {"vendor": found.get("openslide.vendor", "")}
        self.warnings: list[str] = []
        self._lock = threading.Lock()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """[row, column, RGB]; transparency is black, as the tools of the field have it."""
        across, down = (self.levels[0][a] / self.levels[level][a] for a in (0, 1))
        place = (int(np.ceil(x * across)), int(np.ceil(y * down)))
        try:
            picture = self._slide.read_region(place, level, (width, height))
        except self._errors as error:
            raise InputError(f"{self._name}: is damaged: {error}", remedy="Fetch or export it again") from None
        return np.ascontiguousarray(np.asarray(picture)[:, :, :3])


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value > 0 else None


def _pair(x: str | None, y: str | None) -> tuple[float, float] | None:
    across, down = _number(x), _number(y)
    if across is None:
        return None
    return across, down or across
