"""Headers of DICOM files: the attributes that reading needs, and where the pixels begin."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import attrs
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from omlab.errors import InputError

#: Read from every file; the rest of a header, names and dates of people among it, is passed over.
KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier", "EchoNumbers", "EchoTime",
    "DiffusionBValue", "TriggerTime", "AcquisitionTime", "ContentTime", "ImageType",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SequenceOfUltrasoundRegions",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "FrameTime", "CineRate", "RecommendedDisplayFrameRate",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
)  # fmt: skip

#: Of these, what decides whether files are slices of one volume: decoded at once, so that damage shows with the file.
_ALWAYS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
_TAGS = {keyword: Tag(keyword) for keyword in KEYWORDS}
#: Objects with pixels (or none) that answer something about images and are none themselves.
NO_SCANS = {
    "1.2.840.10008.1.3.10": "a DICOMDIR index",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation (DICOM SEG)",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation (DICOM SEG)",
    "1.2.840.10008.5.1.4.1.1.481.2": "a dose (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "a structure set (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole-slide image",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
}
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
#: What pydicom raises on damaged files; its own errors derive from these.
DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, struct.error)


class NoScanError(InputError):
    """A sound DICOM object that is no image."""


@attrs.frozen(eq=False)
class Header:
    """The header of one file.

    Attributes
    ----------
    tags : the attributes of :data:`KEYWORDS` that it has.
    values : the same by keyword, each decoded when it is first asked for.
    syntax : UID of the transfer syntax.
    pixels_at : byte at which uncompressed little-endian pixels begin; ``None`` where a decoder is needed.
    """

    path: Path
    tags: Dataset
    values: Mapping[str, Any]
    syntax: str
    pixels_at: int | None

    def get(self, keyword: str, default: Any = None) -> Any:
        """Value of an attribute; ``default`` where it is absent or empty."""
        value = self.values.get(keyword)
        return default if value is None or value == "" else value

    @property
    def frames(self) -> int:
        """Number of frames, 1 where it is not said."""
        return int(self.get("NumberOfFrames", 1))

    @property
    def modality(self) -> str:
        """DICOM's code, ``"CT"``; empty where it is not said."""
        return str(self.get("Modality", ""))

    def number(self, keyword: str) -> int:
        """An integer that every image must have. Raises :class:`omlab.errors.InputError`."""
        value = self.get(keyword)
        if value is None:
            raise InputError(f"{self.path.name}: its DICOM header has no {keyword}, an image must have one")
        return int(value)


class _Values(Mapping[str, Any]):
    """Values by keyword. Decoding all that a header has would take longer than reading the pixels."""

    def __init__(self, path: Path, tags: Dataset) -> None:
        self._path, self._tags = path, tags
        self._found: dict[str, Any] = {}

    def __getitem__(self, keyword: str) -> Any:
        if keyword not in self._found:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom warns of every odd value; what matters is checked here
                self.decode(keyword)
        return self._found[keyword]

    def decode(self, keyword: str) -> None:
        """Decode a value that is there. Raises :class:`KeyError` where it is not."""
        tag = _TAGS.get(keyword)
        if tag is None or tag not in self._tags:
            raise KeyError(keyword)
        try:
            self._found[keyword] = self._tags[tag].value
        except DAMAGE as error:
            raise InputError(
                f"{self._path.name}: its DICOM header is damaged at {keyword}: {error}",
                remedy="Fetch or export it again",
            ) from None

    def __iter__(self) -> Iterator[str]:
        return (keyword for keyword, tag in _TAGS.items() if tag in self._tags)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_header(path: Path) -> Header:
    """Read the header of a file that was found to be DICOM.

    Raises
    ------
    omlab.errors.InputError
        It cannot be read, is damaged, or is no image.
    """
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # pydicom warns of every odd value; what matters is checked here
            tags = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS.values()))
            syntax = str(tags.file_meta.get("TransferSyntaxUID", "")) or _guessed_syntax(tags)
            pixels_at = _pixels_at(file, syntax)
            values = _Values(path, tags)
            for keyword in _ALWAYS:
                with suppress(KeyError):
                    values.decode(keyword)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except DAMAGE as error:
        raise InputError(
            f"{path.name}: its DICOM header is damaged or cut short: {error}", remedy="Fetch or export it again"
        ) from None
    sop_class = str(values.get("SOPClassUID", ""))
    directory = str(tags.file_meta.get("MediaStorageSOPClassUID", "")) == "1.2.840.10008.1.3.10"
    if sop_class in NO_SCANS or directory:
        what = NO_SCANS.get(sop_class, "a DICOMDIR index")
        raise NoScanError(f"{path.name}: is {what}, expected a DICOM image or series")
    if "Rows" not in values or "Columns" not in values:
        if not sop_class or UID(sop_class).name.endswith("Image Storage"):
            raise InputError(f"{path.name}: its DICOM header is cut short", remedy="Fetch or export it again")
        raise NoScanError(f"{path.name}: is {UID(sop_class).name}, expected a DICOM image or series")
    return Header(path, tags, values, syntax, pixels_at)


def read_headers(paths: Iterable[Path], *, strict: bool) -> list[Header]:
    """Headers of several files; without ``strict`` other DICOM objects are left out. A damaged file is an error."""
    headers = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except NoScanError:
            if strict:
                raise
    return headers


def _guessed_syntax(tags: Dataset) -> str:
    implicit, little = getattr(tags, "original_encoding", (None, None))
    if little is False:
        return "1.2.840.10008.1.2.2"
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _pixels_at(file: BinaryIO, syntax: str) -> int | None:
    """pydicom leaves the file at the element of the pixels; uncompressed ones can be read from there as they are."""
    if syntax not in _NATIVE:
        return None
    start = file.tell()
    element = file.read(12)
    if len(element) < 12 or element[:4] != b"\xe0\x7f\x10\x00":
        return None
    if syntax == ImplicitVRLittleEndian:
        return start + 8
    return start + 12 if element[4:6] in (b"OW", b"OB") else None
