"""Prompts as values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.errors import InputError, UsageError
from omlab.vocabulary import Prompt as Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from omlab.cases import Case

#: Label of an object that nobody named.
UNNAMED = "object"


class Space(StrEnum):
    """What coordinates are."""

    GRID = "grid"
    RAS_MM = "ras-mm"
    LPS_MM = "lps-mm"
    UM = "um"  # micrometres from the upper left corner of a slide


def _position(value: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in value)


@attrs.frozen
class Point:
    """A place that belongs to the object, or (``positive`` false) does not.

    Attributes
    ----------
    at : (x, y) of a picture, (i, j, k) or (x, y, z) of a volume, in the object's space.
    """

    at: tuple[float, ...] = attrs.field(converter=_position)
    positive: bool = True


@attrs.frozen
class Box:
    """A box by two opposite corners, in the object's space."""

    low: tuple[float, ...] = attrs.field(converter=_position)
    high: tuple[float, ...] = attrs.field(converter=_position)


@attrs.frozen(eq=False)
class Mask:
    """A rough mask to start from.

    Attributes
    ----------
    path : a label map on the grid of the case (PNG, NIfTI, DICOM SEG).
    value : the label in the file; ``None`` takes every one but 0.
    array : the mask itself [row, column] or [i, j, k]; filled in when prompts are brought onto a case.
    """

    path: Path | None = None
    value: int | None = None
    array: NDArray[np.bool_] | None = None


@attrs.frozen(eq=False, kw_only=True)
class Object:
    """One thing to find."""

    label: str = UNNAMED
    points: tuple[Point, ...] = attrs.field(default=(), converter=tuple)
    boxes: tuple[Box, ...] = attrs.field(default=(), converter=tuple)
    mask: Mask | None = None
    text: str = ""
    space: Space = attrs.field(default=Space.GRID, converter=Space)

    @property
    def kinds(self) -> frozenset[Kind]:
        """Which kinds of prompt it has."""
        has = {Kind.POINT: self.points, Kind.BOX: self.boxes, Kind.MASK: self.mask, Kind.TEXT: self.text}
        return frozenset(kind for kind, value in has.items() if value)


@attrs.frozen(eq=False, kw_only=True)
class Prompts:
    """What is asked.

    Attributes
    ----------
    objects : for every case.
    cases : case name -> objects for that case alone.
    failures : case name -> why what a file asks of that case makes no sense.
    """

    objects: tuple[Object, ...] = attrs.field(default=(), converter=tuple)
    cases: Mapping[str, tuple[Object, ...]] = attrs.field(factory=dict)
    failures: Mapping[str, InputError] = attrs.field(factory=dict)

    @property
    def kinds(self) -> frozenset[Kind]:
        """Which kinds of prompt there are."""
        every = [*self.objects, *(item for objects in self.cases.values() for item in objects)]
        return frozenset(kind for item in every for kind in item.kinds)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the objects for every case, in order, once each."""
        return tuple(dict.fromkeys(item.label for item in self.objects))

    def joined(self, other: Prompts) -> Prompts:
        """These and ``other``; objects of one label and space become one."""
        cases = {
            name: _merged((*self.cases.get(name, ()), *other.cases.get(name, ())))
            for name in {**self.cases, **other.cases}
        }
        return Prompts(
            objects=_merged((*self.objects, *other.objects)), cases=cases, failures={**other.failures, **self.failures}
        )

    def demand(self, accepted: Collection[Kind], model: str) -> None:
        """Raise :class:`omlab.errors.UsageError` for a kind of prompt that ``model`` does not take."""
        wrong = sorted(kind.value for kind in self.kinds - set(accepted))
        if wrong:
            takes = ", ".join(kind.value for kind in accepted) or "no prompts at all"
            raise UsageError(f"'{model}' takes no {wrong[0]} as a prompt", remedy=f"It takes {takes}")

    def for_case(self, *names: str) -> Prompts:
        """Only what is asked of the case that goes by one of ``names``; the first name that has objects counts.

        Raises
        ------
        InputError
            No object is for it, or those for it make no sense.
        """
        for name in names:
            if name in self.failures:
                raise self.failures[name]
        own = next((self.cases[name] for name in names if name in self.cases), ())
        if not self.objects and not own:
            known = ", ".join(list(self.cases)[:4]) or "none"
            raise InputError(
                f"{names[0] if names else 'the case'}: the prompts have no object for it",
                remedy=f"They have cases: {known}",
            )
        return Prompts(objects=(*self.objects, *own))

    def on(self, case: Case) -> Prompts:
        """These prompts for one case: its own objects chosen, coordinates on its grid, masks read.

        Raises
        ------
        InputError
            Wrong number of coordinates, a place outside of the case, a mask on another grid, millimetres for a case
            that does not lie in a patient, or no objects for this case, or such that make no sense.
        """
        from omlab.prompts.placing import place

        return Prompts(objects=[place(item, case) for item in self.for_case(*case_names(case)).objects])

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data, the inverse of :func:`from_json`. A mask given as an array is told by its digest."""
        from omlab.prompts.schema import table_of

        table: dict[str, Any] = {"objects": [table_of(item) for item in self.objects]}
        if self.cases:
            table["cases"] = {name: [table_of(item) for item in objects] for name, objects in self.cases.items()}
        return table


def case_names(case: Case) -> list[str]:
    """The names that a prompt file may call ``case`` by."""
    from omlab.files import case_stem

    path = case.source.path
    names = [case.name, case_stem(case.name), *([path.name, case_stem(path.name)] if path else [])]
    return list(dict.fromkeys(names))


def _merged(objects: Sequence[Object]) -> tuple[Object, ...]:
    found: dict[tuple[str, Space], Object] = {}
    for item in objects:
        key = (item.label, item.space)
        if key in found:
            one = found[key]
            found[key] = attrs.evolve(
                one, points=one.points + item.points, boxes=one.boxes + item.boxes,
                mask=item.mask or one.mask, text=item.text or one.text,
            )  # fmt: skip
        else:
            found[key] = item
    return tuple(found.values())
