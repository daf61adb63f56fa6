"""Cases: what a model looks at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.geometry import Geometry
from omlab.vocabulary import InputKind


@attrs.frozen(eq=False, kw_only=True)
class Source:
    """Where a case came from, as far as results need it.

    Attributes
    ----------
    path : the file or folder that the user named.
    format : ``"nifti"``, ``"dicom"``, ``"nrrd"``, ``"metaimage"``, ``"png"``, ``"jpeg"``, ``"tiff"`` or ``"memory"``.
    files : every file of the case; for a DICOM series in slice order (k).
    details : what the reader found and writers or users may want (series UID, frame, gantry tilt ...).
    warnings : one line each, shown to the user and kept in result.json.
    """

    path: Path | None = None
    format: str = "memory"
    files: tuple[Path, ...] = ()
    details: Mapping[str, Any] = attrs.field(factory=dict)
    warnings: tuple[str, ...] = ()


@attrs.frozen(eq=False, kw_only=True)
class Case:
    """Base of all cases."""

    name: str
    source: Source = attrs.field(factory=Source)
    kind = InputKind.IMAGE


@attrs.frozen(eq=False, kw_only=True)
class Image(Case):
    """A 2D image.

    Attributes
    ----------
    pixels : [row, column] or [row, column, RGB]; the file's dtype (uint8, uint16; float32 after a DICOM
        rescale). MONOCHROME1 is inverted at the reader: greater is brighter.
    spacing_mm : (row, column) distance between pixel centres, where the file says.
    bits : bits that the values use, for scaling to 0..1.
    """

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None = None
    bits: int = 8
    kind = InputKind.IMAGE

    def rgb8(self) -> NDArray[np.uint8]:
        """[row, column, 3] uint8; 16-bit and float values are scaled linearly from their range to 0..255."""
        pixels = self.pixels
        if pixels.dtype != np.uint8:
            if pixels.dtype.kind == "u":
                low, high = 0.0, float(2**self.bits - 1)
            else:
                low, high = float(pixels.min()), float(pixels.max())
            scale = 255.0 / (high - low) if high > low else 0.0
            scaled = (pixels.astype(np.float32) - low) * scale
            pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[:, :, None], 3, axis=2)
        return np.ascontiguousarray(pixels[:, :, :3])


@attrs.frozen(eq=False, kw_only=True)
class Volume(Case):
    """A 3D scan.

    Attributes
    ----------
    voxels : [i, j, k] in the file's axis order, in the smallest dtype that holds the (rescaled) values exactly;
        Hounsfield units for CT.
    geometry : grid in RAS+ millimetres.
    modality : DICOM modality code (``"CT"``, ``"MR"``) where the file says.
    """

    voxels: NDArray[Any]
    geometry: Geometry
    modality: str = ""
    kind = InputKind.VOLUME


@attrs.frozen(eq=False, kw_only=True)
class Sequence(Case):
    """A protein.

    Attributes
    ----------
    residues : one letter an amino acid, upper case, from the N-terminus.
    description : what the file says of it beyond its name.
    """

    residues: str
    description: str = ""
    kind = InputKind.SEQUENCE


@attrs.frozen(kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes
    ----------
    role : ``"system"``, ``"user"`` or ``"assistant"``.
    content : what was said.
    """

    role: str
    content: str


@attrs.frozen(eq=False, kw_only=True)
class Text(Case):
    """A conversation for a language model, or a single question as its only turn.

    Attributes
    ----------
    messages : turns in order.
    fields : what else the record of the file says, say a reference answer.
    """

    messages: tuple[Message, ...] = attrs.field(converter=tuple)
    fields: Mapping[str, Any] = attrs.field(factory=dict)
    kind = InputKind.TEXT

    @property
    def question(self) -> str:
        """The last turn of the user; empty without one."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")
