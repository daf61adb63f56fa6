"""Names of the segments that 3D Slicer keeps in the header of its ``.seg.nrrd``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from omlab.errors import InputError
from omlab.results.colours import colour_of
from omlab.results.types import Label

_VALUE = re.compile(r"(Segment[0-9]+_)LabelValue")


def names(header: Mapping[str, str], file: str) -> tuple[Label, ...]:
    """Labels of the ``SegmentN_Name``, ``SegmentN_LabelValue`` and ``SegmentN_Color`` in a file's header; none where it
    has no segments.

    Raises
    ------
    omlab.errors.InputError
        Segments overlap, in layers of their own, or two have one value; a value is no number.
    """
    found: dict[int, Label] = {}
    for key, text in header.items():
        match = _VALUE.fullmatch(key)
        if match is None:
            continue
        part = match[1]
        if not text.strip().isdecimal():
            raise InputError(f"{file}: its header says {key} '{text}', expected a whole number")
        value = int(text)
        if header.get(f"{part}Layer", "0").strip() != "0" or value in found:
            raise InputError(
                f"{file}: its segments overlap, in several layers", remedy="Export them as one label map, or each alone"
            )
        name = header.get(f"{part}Name", f"label {value}")
        found[value] = Label(value=value, name=name, colour=_colour(header.get(f"{part}Color", ""), value))
    return tuple(found[value] for value in sorted(found))


def _colour(text: str, value: int) -> tuple[int, int, int]:
    """Three numbers from 0 to 1; a colour of ours where they are none."""
    try:
        red, green, blue = (round(255 * min(max(float(part), 0.0), 1.0)) for part in text.split())
    except ValueError:
        return colour_of(value)
    return red, green, blue
