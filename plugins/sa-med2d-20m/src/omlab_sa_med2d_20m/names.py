"""What the names of SA-Med2D-20M's files say.

An image is called ``{modality}--{data set}--{case}--{axis}_{slice}.png``, a mask has ``--{class}_{instance}`` more. The
class is an index within its data set.
"""

from __future__ import annotations

import re

import attrs

#: Modalities whose name holds an underscore; of all others the part before the first one is the modality.
_WHOLE = ("x_ray", "fundus_photography")
_SLICE = re.compile(r"[xyz]_\d{4}\Z|2d_none\Z")
_OBJECT = re.compile(r"(\d{4})_(\d{3})\Z")


@attrs.frozen
class ImageName:
    """An image, from its name.

    Attributes
    ----------
    modality : main modality, say ``"ct"``, ``"mr"``, ``"x_ray"``.
    sequence : sub-modality, say ``"t1"``; empty where it is not known or there is none.
    source : the data set that it was taken from.
    case : its case there.
    axis, index : of the plane in a volume; empty and ``None`` for 2D data.
    """

    modality: str
    sequence: str
    source: str
    case: str
    axis: str = ""
    index: int | None = None

    @property
    def group(self) -> str:
        """The patient, as far as the name tells: planes of one volume belong together."""
        return f"{self.source}/{self.case}"


def parse(stem: str) -> ImageName:
    """An image's name without ``.png``. Raises ``ValueError`` with what is wrong."""
    parts = stem.split("--", 3)
    if len(parts) != 4 or not all(parts):
        raise ValueError("expected four parts joined by --: modality, data set, case, plane")
    prefix, source, case, plane = parts
    if "--" in plane or not _SLICE.match(plane):
        raise ValueError(f"'{plane}' is no plane; expected x, y or z with four digits, or 2d_none")
    modality, sequence = split_prefix(prefix)
    if plane == "2d_none":
        return ImageName(modality, sequence, source, case)
    return ImageName(modality, sequence, source, case, plane[0], int(plane[2:]))


def split_prefix(prefix: str) -> tuple[str, str]:
    """Main modality and sub-modality of the first part of a name: ``mr_t1`` is mr and t1."""
    if prefix in _WHOLE:
        return prefix, ""
    modality, _, sequence = prefix.partition("_")
    return modality, "" if sequence == "00" else sequence


def parse_object(text: str) -> tuple[int, int]:
    """Class and instance of ``0011_000``. Raises ``ValueError``."""
    matched = _OBJECT.match(text)
    if matched is None:
        raise ValueError(f"'{text}' is no class of four digits and instance of three")
    return int(matched[1]), int(matched[2])
