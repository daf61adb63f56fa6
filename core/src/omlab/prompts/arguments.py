"""Prompts from plain Python values and from the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from omlab.errors import UsageError
from omlab.prompts.schema import box_of, object_of, read
from omlab.prompts.types import UNNAMED, Box, Mask, Object, Point, Prompts, Space


def make(
    *,
    point: Sequence[float] | None = None,
    points: Iterable[Sequence[float]] = (),
    labels: Sequence[int] | int | None = None,
    box: Sequence[float] | None = None,
    boxes: Iterable[Sequence[float]] = (),
    mask: Any = None,
    text: str = "",
    label: str = UNNAMED,
    space: str = Space.GRID,
) -> Prompts:
    """Prompts for one object from plain Python values.

    Parameters
    ----------
    point, points : (x, y) or (i, j, k); ``labels`` has a 1 or 0 for each of them.
    box, boxes : both corners one after the other, (x0, y0, x1, y1) or (i0, j0, k0, i1, j1, k1).
    mask : an array on the case's grid, or the path of a label map.
    label : name of the object; ``space`` as in the JSON schema.

    Raises
    ------
    UsageError
        Values that are no coordinates, or as many labels as there are not points.
    """
    table: dict[str, Any] = {"label": label, "space": space, "text": text}
    table["points"] = [_plain(p) for p in ([point] if point is not None else []) + list(points)]
    table["boxes"] = [_plain(b) for b in ([box] if box is not None else []) + list(boxes)]
    if labels is not None:
        table["point-labels"] = _labels(labels)
    found = object_of(table, "the prompt", Path(), UsageError)
    if isinstance(mask, Mask):
        found = attrs.evolve(found, mask=mask)
    elif isinstance(mask, str | Path):
        found = attrs.evolve(found, mask=Mask(path=Path(mask)))
    elif mask is not None:
        import numpy as np

        found = attrs.evolve(found, mask=Mask(array=np.asarray(mask) != 0))
    if not found.kinds:
        raise UsageError("the prompt is empty", remedy="Give a point, a box, a mask or a text")
    return Prompts(objects=[found])


def of_arguments(
    points: Sequence[str] = (),
    boxes: Sequence[str] = (),
    masks: Sequence[Path] = (),
    files: Sequence[Path] = (),
    texts: Sequence[str] = (),
) -> Prompts | None:
    """Prompts of a command line: points, boxes, mask and text make one object, files add theirs; ``None`` without
    any.

    Raises
    ------
    UsageError
        A point or box that is not written as expected, or several masks or texts.
    InputError
        A file that is no prompt file.
    """
    found: Prompts | None = None
    for path in files:
        read_in = read(path)
        found = read_in if found is None else found.joined(read_in)
    for name, values in (("mask", masks), ("text", texts)):
        if len(values) > 1:
            raise UsageError(
                f"--{name} is given {len(values)} times, an object has one",
                remedy="Name several objects with --prompts",
            )
    if points or boxes or masks or texts:
        item = Object(
            points=[parse_point(p) for p in points], boxes=[parse_box(b) for b in boxes],
            mask=Mask(path=masks[0]) if masks else None, text=texts[0] if texts else "",
        )  # fmt: skip
        own = Prompts(objects=[item])
        found = own if found is None else found.joined(own)
    return found


def parse_point(text: str) -> Point:
    """``"x,y"`` or ``"i,j,k"``, with ``:0`` behind it for a place that does not belong. Raises UsageError."""
    places, colon, label = text.partition(":")
    numbers = _numbers(places)
    if len(numbers) not in (2, 3) or (colon and label not in ("0", "1")):
        raise UsageError(
            f"'{text}' is no point", remedy="Write x,y or i,j,k, and :0 behind it for background: 120,80:0"
        )
    return Point(numbers, label != "0")


def parse_box(text: str) -> Box:
    """``"x0,y0,x1,y1"`` or ``"i0,j0,k0,i1,j1,k1"``. Raises UsageError."""
    numbers = _numbers(text)
    if len(numbers) not in (4, 6):
        raise UsageError(
            f"'{text}' is no box", remedy="Write both corners, x0,y0,x1,y1 or i0,j0,k0,i1,j1,k1: 10,20,90,120"
        )
    return box_of(numbers, f"box '{text}'", Space.GRID, UsageError)


def _labels(value: Any) -> Any:
    plain = _plain(value)
    return [plain] if isinstance(plain, int) else plain


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _plain(value: Any) -> Any:
    """NumPy arrays and tuples as lists of Python numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
