"""What a file is, told from its first bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Collection
from enum import Enum
from pathlib import Path

from omlab.errors import InputError
from omlab.vocabulary import InputKind


class Family(Enum):
    """Which reader a file needs."""

    NIFTI = "nifti"
    ITK = "itk"
    PICTURE = "picture"
    DICOM = "dicom"
    VIDEO = "video"
    SLIDE = "slide"
    STACK = "stack"
    HDF5 = "hdf5"
    FASTA = "fasta"
    TEXT = "text"

    @property
    def kinds(self) -> frozenset[InputKind]:
        """Kinds of case that such a file can be."""
        return _KINDS[self]

    @property
    def noun(self) -> str:
        """What such a file is, in words."""
        return _NOUNS[self]


_KINDS = {
    Family.NIFTI: frozenset({InputKind.VOLUME}),
    Family.ITK: frozenset({InputKind.VOLUME}),
    Family.PICTURE: frozenset({InputKind.IMAGE}),
    Family.DICOM: frozenset({InputKind.IMAGE, InputKind.VOLUME, InputKind.VIDEO}),
    Family.VIDEO: frozenset({InputKind.VIDEO}),
    Family.SLIDE: frozenset({InputKind.SLIDE}),
    Family.STACK: frozenset({InputKind.STACK}),
    Family.HDF5: frozenset({InputKind.FEATURES}),
    Family.FASTA: frozenset({InputKind.SEQUENCE}),
    Family.TEXT: frozenset({InputKind.TEXT, InputKind.SEQUENCE}),
}
_NOUNS = {
    Family.NIFTI: "a 3D volume",
    Family.ITK: "a 3D volume",
    Family.PICTURE: "a 2D image",
    Family.DICOM: "a DICOM file",
    Family.VIDEO: "a video",
    Family.SLIDE: "a whole slide",
    Family.STACK: "a stack of planes",
    Family.HDF5: "an HDF5 file",
    Family.FASTA: "a file of protein sequences",
    Family.TEXT: "a text file",
}
#: What a model takes -> formats, for messages.
_EXPECTED = {
    InputKind.IMAGE: "PNG, JPEG, TIFF or DICOM",
    InputKind.VOLUME: "NIfTI, DICOM, NRRD or MetaImage",
    InputKind.VIDEO: "MP4, AVI, MKV or a folder of frames",
    InputKind.SLIDE: "a TIFF pyramid or a slide that OpenSlide reads",
    InputKind.STACK: "a TIFF of many pages, a folder of TIFF pages or OME-Zarr",
    InputKind.FEATURES: "HDF5 with features of patches",
    InputKind.SEQUENCE: "FASTA or CSV",
    InputKind.TEXT: "text, JSON lines or CSV",
}
#: A larger picture is a slide to those who take both.
SLIDE_PIXELS = 2**24
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive", b"%PDF": "a PDF", b"MINC": "a MINC file", b"RIFF": "a RIFF file",
}  # fmt: skip
_ITK = (b"NRRD000", b"ObjectType")
_TEXT_BYTES = bytes({7, 8, 9, 10, 12, 13, 27, *range(0x20, 0x100)} - {0x7F})


def expected(kinds: Collection[InputKind] = ()) -> str:
    """The formats of files that can be of ``kinds``, in words; of scans and pictures without any."""
    return (
        " or ".join(_EXPECTED[kind] for kind in kinds if kind in _EXPECTED)
        or "NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG or TIFF"
    )


def family_of(path: Path, kinds: Collection[InputKind] = ()) -> Family:
    """Which reader a file needs, by its content.

    Parameters
    ----------
    kinds : what the caller can use. Words of the message depend on it; and a TIFF file is a slide to those who take
        slides only, and to those who take pictures too if it is a pyramid or larger than any picture; to those who take
        stacks of planes it is one.

    Raises
    ------
    omlab.errors.InputError
        It is missing, empty, unreadable or nothing that omlab reads.
    """
    if path.is_dir():
        return Family.STACK if InputKind.STACK in kinds else Family.DICOM
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not start:
        raise InputError(f"{path}: is empty, expected a scan or a picture")
    if start[:2] == b"\x1f\x8b":
        inner = _inflated(path, start)
        if _nifti(inner):
            return Family.NIFTI
        raise InputError(f"{path}: is gzip-compressed, but what is inside is no NIfTI file")
    if _nifti(start):
        return Family.NIFTI
    if start.startswith(_ITK):
        return Family.ITK
    if start[128:132] == b"DICM" or _bare_dicom(start):
        return Family.DICOM
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return Family.HDF5
    if InputKind.STACK in kinds and start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return Family.STACK
    if _slide(path, start, kinds):
        return Family.SLIDE
    if start.startswith(_PICTURES):
        return Family.PICTURE
    if start[4:8] in (b"ftyp", b"moov", b"mdat") or start.startswith(b"\x1aE\xdf\xa3") or start[8:12] == b"AVI ":
        return Family.VIDEO
    what = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None)
    if what is None and not start.translate(None, _TEXT_BYTES):
        return Family.FASTA if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b">", b";") else Family.TEXT
    raise InputError(f"{path}: is {what or 'of no format that omlab knows'}, expected {expected(kinds)}")


def _slide(path: Path, start: bytes, kinds: Collection[InputKind]) -> bool:
    if start.startswith((b"II+\0", b"MM\0+")):  # BigTIFF: nothing else needs it
        return True
    if InputKind.SLIDE not in kinds:
        return False
    from omlab.cases import slide_openslide, slide_tiff

    if path.suffix.lower() in slide_openslide.SUFFIXES:
        return True
    if not start.startswith(slide_tiff.MAGIC):
        return False
    return InputKind.IMAGE not in kinds or slide_tiff.looks_like_slide(path, SLIDE_PIXELS)


def _inflated(path: Path, start: bytes) -> bytes:
    """The first decompressed bytes."""
    try:
        inner = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, 1024)
        if len(inner) >= 348:
            return inner
        with gzip.open(path) as file:
            return file.read(1024)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is damaged or cut short: {error}", remedy="Fetch or export it again") from None


def _nifti(start: bytes) -> bool:
    if len(start) < 348:
        return False
    for order in "<>":
        size = struct.unpack(order + "i", start[:4])[0]
        if size == 348 and start[344:348] in (b"n+1\0", b"ni1\0"):
            return True
        if size == 540 and start[4:8] in (b"n+2\0", b"ni2\0"):
            return True
    return False


def _bare_dicom(start: bytes) -> bool:
    """A data set without preamble: it begins with a tag of group 2 or 8 and a plausible value representation."""
    if len(start) < 16:
        return False
    group, element = struct.unpack("<HH", start[:4])
    return group in (2, 8) and element <= 0x20 and start[4:6] in (b"UL", b"UI", b"OB", b"CS", b"SH", b"DA")
