"""Prompts: what a person points at. One schema for every promptable model, 2D and 3D.

A prompt set holds objects. An object is one thing to find: a label, and the points, boxes, mask and text that say
where or what it is. As JSON::

    {"space": "grid",
     "objects": [{"label": "liver", "points": [[120, 80], [30, 40]], "point-labels": [1, 0],
                  "boxes": [[10, 20, 90, 120]], "mask": "liver.png", "text": "the liver"}],
     "cases": {"scan-7": [{"label": "spleen", "points": [[210, 88]]}]}}

``space`` (of the file, or of one object) says what the numbers are:

``grid``
    Pixels of a picture as (x, y): column, row. Voxels of a volume as (i, j, k), the axes of the file. Whole numbers
    are centres; the first one is 0. The default.
``ras-mm``, ``lps-mm``
    Millimetres in the patient, of volumes: x to the right, y to the front and z to the head (as NIfTI has it), or x
    to the left, y to the back and z to the head (as DICOM has it).
``um``
    Micrometres from the upper left corner of a whole slide, (x, y). Its ``grid`` are pixels of level 0.

``point-labels`` are 1 for "this belongs to it" (the default) and 0 for "this does not". A box is its two opposite
corners, the lesser one first where ``space`` is ``grid``. ``cases`` holds objects for single cases by their name, which
are added to those for all; what is wrong with them is told of that case, and the others go on. Files of masks are found
relative to the JSON file.
"""

from __future__ import annotations

from omlab.prompts.arguments import make, of_arguments, parse_box, parse_point
from omlab.prompts.schema import coerce, from_json, read, stamp
from omlab.prompts.types import UNNAMED, Box, Mask, Object, Point, Prompts, Space

__all__ = [
    "UNNAMED", "Box", "Mask", "Object", "Point", "Prompts", "Space", "coerce", "from_json", "make", "of_arguments",
    "parse_box", "parse_point", "read", "stamp",
]  # fmt: skip
