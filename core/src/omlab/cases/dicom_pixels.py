"""Pixels of DICOM files: decoded, rescaled, and bright where the film was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError

_GREY = ("MONOCHROME1", "MONOCHROME2")
#: Transfer syntax (by the start of its name) -> packages that decode it.
_INSTALL = "omlab[dicom]"


def decode(dataset: Any, path: Path, *, frame: int | None = None) -> NDArray[Any]:
    """Stored values of one frame [row, column(, RGB)], or of all frames [frame, row, column(, RGB)].

    Raises
    ------
    omlab.errors.InputError
        No pixels, cut short, or a compression that nothing installed decodes.
    """
    name = path.name
    if "PixelData" not in dataset:
        raise InputError(f"{name}: holds no pixels")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is not None and not syntax.is_compressed and frame is None:
        native = _native(dataset, name)
        if native is not None:
            return native
    from pydicom.pixels import pixel_array

    try:
        return pixel_array(dataset, index=frame, raw=False)
    except NotImplementedError as error:
        raise InputError(f"{name}: its pixels are of a kind that cannot be decoded: {_first(error)}") from None
    except (RuntimeError, AttributeError, ImportError) as error:
        if syntax is not None and syntax.is_compressed and "missing" in str(error).lower():
            raise InputError(
                f"{name}: is compressed as {syntax.name} ({syntax}), which no decoder installed here handles",
                remedy=f"Install the decoders: pip install '{_INSTALL}'",
            ) from None
        raise InputError(f"{name}: its pixels cannot be decoded: {_first(error)}") from None
    except (ValueError, EOFError, OSError, IndexError) as error:
        raise InputError(f"{name}: its pixels are damaged or cut short: {_first(error)}") from None


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _native(dataset: Any, name: str) -> NDArray[Any] | None:
    """Uncompressed grey pixels straight from the bytes of the file; ``None`` where it is not that simple."""
    bits, samples = int(dataset.BitsAllocated), int(getattr(dataset, "SamplesPerPixel", 1))
    if bits not in (8, 16) or samples != 1 or dataset.PhotometricInterpretation not in _GREY:
        return None
    if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        return None
    frames = int(getattr(dataset, "NumberOfFrames", 1) or 1)
    shape = (frames, int(dataset.Rows), int(dataset.Columns))
    kind = np.dtype(f"<{'i' if int(dataset.PixelRepresentation) else 'u'}{bits // 8}")
    count = int(np.prod(shape))
    raw = dataset.PixelData
    if len(raw) < count * kind.itemsize:
        raise InputError(f"{name}: is cut short, {len(raw)} of {count * kind.itemsize} bytes of pixels are there")
    values = np.frombuffer(raw, kind, count).reshape(shape)
    stored = int(getattr(dataset, "BitsStored", bits))
    if stored < bits and (kind.kind == "i" or values.max(initial=0) >> stored):
        # Bits above the stored ones may hold overlays; shifting up and down clears them and keeps the sign.
        values = (values << (bits - stored)) >> (bits - stored)
    return values[0] if frames == 1 else values


def rescale_of(dataset: Any, group: Any = None) -> tuple[float, float]:
    """(slope, intercept), 1 and 0 where there is none."""
    source = group if group is not None else dataset
    try:
        slope = float(getattr(source, "RescaleSlope", 1) or 1)
        intercept = float(getattr(source, "RescaleIntercept", 0) or 0)
    except (TypeError, ValueError):
        return 1.0, 0.0
    return slope, intercept


def rescaled_type(kind: np.dtype[Any], slope: float, intercept: float, bits: int) -> np.dtype[Any]:
    """The smallest type that holds the rescaled values exactly: int16 or int32 for whole numbers, else float32."""
    if slope == 1 and intercept == 0:
        return kind
    if slope != round(slope) or intercept != round(intercept):
        return np.dtype(np.float32)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind.kind == "i" else (0, 2**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    for wide in (np.int16, np.int32):
        if np.iinfo(wide).min <= ends[0] and ends[1] <= np.iinfo(wide).max:
            return np.dtype(wide)
    return np.dtype(np.float32)


def picture(dataset: Any, path: Path, frame: int | None) -> tuple[NDArray[Any], int]:
    """Pixels to look at ([row, column] or [row, column, RGB]) and the bits that they use.

    MONOCHROME1 is turned round, palettes and YBR become RGB, a rescale is applied.
    """
    values = decode(dataset, path, frame=frame)
    kind = str(dataset.PhotometricInterpretation)
    bits = int(getattr(dataset, "BitsStored", 8))
    if kind == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        colours = apply_color_lut(values, dataset)
        # The table holds 16 bits an entry; where they only repeat 8, those are enough.
        return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours, 8
    if values.ndim == 3:
        return values, bits
    slope, intercept = rescale_of(dataset)
    target = rescaled_type(values.dtype, slope, intercept, bits)
    if target != values.dtype or slope != 1 or intercept != 0:
        values = values.astype(target) * target.type(slope) + target.type(intercept)
    if kind == "MONOCHROME1":
        top = 2**bits - 1 if values.dtype.kind == "u" else values.max(initial=0) + values.min(initial=0)
        values = (top - values.astype(np.int64)).astype(values.dtype) if values.dtype.kind in "iu" else top - values
    if values.dtype.kind == "i" and values.min(initial=0) >= 0:
        values = values.astype(np.uint16)
    return values, min(16, max(8, bits))
