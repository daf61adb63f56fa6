"""2D pictures: PNG, JPEG, TIFF; 8 and 16 bit, grey and colour."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from omlab.cases.types import Image, Source
from omlab.errors import InputError

FORMATS = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "TIFF": "tiff", "BMP": "png"}


def read(path: Path, *, frame: int | None = None) -> Image:
    """Read a picture. Rotation tags are applied; transparency is laid over black; palettes become colours.

    Raises
    ------
    omlab.errors.InputError
        Damaged, truncated, too large to be a picture, or of several pages without ``frame``.
    """
    name = path.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as picture:
                pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
                if pages > 1 and frame is None:
                    raise InputError(f"{name}: has {pages} pages, expected one", remedy="Choose one with --frame N")
                if frame is not None:
                    if not 0 <= frame < pages:
                        raise InputError(f"{name}: has no page {frame}", remedy=f"It has 0 to {pages - 1}")
                    picture.seek(frame)
                kind = FORMATS.get(picture.format or "", "png")
                picture.load()
                pixels, bits = _pixels(ImageOps.exif_transpose(picture), name)
                dpi = picture.info.get("dpi")
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise InputError(
            f"{name}: is too large for a picture", remedy="Is it a slide? Cut it into tiles first"
        ) from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: is no picture that can be read (PNG, JPEG, TIFF)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{name}: is damaged or cut short: {error}") from None
    details: dict[str, Any] = {"dimensions": list(pixels.shape), "dtype": str(pixels.dtype)}
    if dpi:
        details["dpi"] = [float(d) for d in dpi]
    source = Source(path=path, format=kind, files=(path,), details=details)
    return Image(name=name, pixels=pixels, bits=bits, source=source)


def _pixels(picture: Pillow.Image, name: str) -> tuple[np.ndarray, int]:
    mode = picture.mode
    if mode in ("L", "RGB"):
        return np.asarray(picture), 8
    if mode == "1":
        return np.asarray(picture.convert("L")), 8
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(picture)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise InputError(f"{name}: has 32-bit values outside of 0 to 65535")
        return values.astype(np.uint16), 16
    if mode == "F":
        return np.asarray(picture), 32
    if mode in ("LA", "La"):
        return np.asarray(picture.getchannel(0)), 8
    if mode in ("RGBA", "PA") or (mode == "P" and "transparency" in picture.info):
        black = Pillow.new("RGBA", picture.size, (0, 0, 0, 255))
        return np.asarray(Pillow.alpha_composite(black, picture.convert("RGBA")).convert("RGB")), 8
    return np.asarray(picture.convert("RGB")), 8
