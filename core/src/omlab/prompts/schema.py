"""The JSON of prompts: read, checked entry by entry, written."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omlab.errors import InputError, UsageError
from omlab.prompts.types import UNNAMED, Box, Mask, Object, Point, Prompts, Space

_OBJECT_KEYS = ("label", "points", "point-labels", "boxes", "mask", "text", "space")
_FILE_KEYS = ("space", "objects", "cases")
Failure = type[InputError] | type[UsageError]


def coerce(value: Any) -> Prompts | None:
    """Prompts from whatever a caller may hand over: :class:`Prompts`, parsed JSON, the path of a JSON file; ``None``
    stays.

    Raises
    ------
    InputError
        The JSON is not as the schema has it.
    UsageError
        A value of another type.
    """
    if value is None or isinstance(value, Prompts):
        return value
    if isinstance(value, str | Path):
        return read(value)
    if isinstance(value, Mapping | list):
        return from_json(value)
    raise UsageError(
        f"prompts are a Prompts value, a dict or list of the JSON schema, or a path, found {type(value).__name__}"
    )


def read(path: str | Path) -> Prompts:
    """A prompt file. Raises :class:`omlab.errors.InputError` naming what is wrong and where."""
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, a prompt file was expected") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is no JSON, line {error.lineno}: {error.msg}") from None
    return from_json(data, where=str(path), folder=path.parent)


def from_json(data: Any, *, where: str = "prompts", folder: Path | None = None) -> Prompts:
    """Prompts from parsed JSON.

    Parameters
    ----------
    where : what the data is of, for messages.
    folder : what paths of masks are relative to.

    Raises
    ------
    InputError
        Something is not as the schema has it; the message names the place. What is wrong with the objects of a single
        case is raised when that case asks for them, so that the others go on.
    """
    folder = folder or Path()
    table = {"objects": data} if isinstance(data, list) else data
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: expected an object with 'objects', found {_short(data)}")
    _known(table, _FILE_KEYS, where, InputError)
    space = table.get("space", Space.GRID.value)
    cases = table.get("cases", {})
    if not isinstance(cases, Mapping):
        raise InputError(f"{where}: 'cases' maps names to lists of objects, found {_short(cases)}")
    objects = _objects(table.get("objects", []), f"{where}: objects", folder, space)
    own: dict[str, tuple[Object, ...]] = {}
    failures: dict[str, InputError] = {}
    for name, value in cases.items():
        items = value.get("objects", []) if isinstance(value, Mapping) else value
        try:
            own[str(name)] = _objects(items, f"{where}: cases '{name}'", folder, space)
        except InputError as error:
            failures[str(name)] = error
    if not objects and not any(own.values()):
        for error in failures.values():
            raise error
        raise InputError(f"{where}: holds no object", remedy="Give at least one in 'objects' or 'cases'")
    return Prompts(objects=objects, cases=own, failures=failures)


def _objects(data: Any, where: str, folder: Path, space: str) -> tuple[Object, ...]:
    if not isinstance(data, list):
        raise InputError(f"{where}: expected a list of objects, found {_short(data)}")
    found = []
    for number, item in enumerate(data):
        place = f"{where}[{number}]"
        if not isinstance(item, Mapping):
            raise InputError(f"{place}: expected an object, found {_short(item)}")
        one = object_of({"space": space, **item}, place, folder, InputError)
        if not one.kinds:
            raise InputError(f"{place}: has no points, boxes, mask or text")
        found.append(one)
    return tuple(found)


def object_of(table: Mapping[str, Any], where: str, folder: Path, failure: Failure) -> Object:
    """One object from its JSON; what is wrong is raised as ``failure``, beginning with ``where``."""
    _known(table, _OBJECT_KEYS, where, failure)
    label, text = table.get("label", UNNAMED), table.get("text", "")
    if not isinstance(label, str) or not label.strip():
        raise failure(f"{where}: 'label' is a text that is not empty, found {_short(label)}")
    if not isinstance(text, str):
        raise failure(f"{where}: 'text' is a text, found {_short(text)}")
    if table.get("space", "grid") not in list(Space):
        raise failure(f"{where}: 'space' is one of {', '.join(Space)}, found {_short(table['space'])}")
    space = Space(table.get("space", "grid"))
    points = _rows(table.get("points", []), (2, 3), f"{where}: points", failure)
    labels = table.get("point-labels")
    if labels is None:
        labels = [1] * len(points)
    if not isinstance(labels, list) or any(isinstance(v, bool) or v not in (0, 1) for v in labels):
        raise failure(f"{where}: 'point-labels' are 0 or 1, found {_short(labels)}")
    if len(labels) != len(points):
        raise failure(f"{where}: has {len(points)} points and {len(labels)} point-labels")
    boxes = _rows(table.get("boxes", []), (4, 6), f"{where}: boxes", failure)
    return Object(
        label=label.strip(), text=text.strip(), space=space,
        points=[Point(at, value == 1) for at, value in zip(points, labels, strict=True)],
        boxes=[box_of(box, f"{where}: boxes[{i}]", space, failure) for i, box in enumerate(boxes)],
        mask=_mask(table.get("mask"), where, folder, failure),
    )  # fmt: skip


def _mask(value: Any, where: str, folder: Path, failure: Failure) -> Mask | None:
    if value is None:
        return None
    if isinstance(value, str) and value:
        return Mask(path=folder / value)
    if isinstance(value, Mapping) and isinstance(value.get("file"), str):
        _known(value, ("file", "value"), f"{where}: mask", failure)
        label = value.get("value")
        if label is None or (isinstance(label, int) and not isinstance(label, bool) and label > 0):
            return Mask(path=folder / value["file"], value=label)
    raise failure(f'{where}: \'mask\' is a file or {{"file": ..., "value": 1}}, found {_short(value)}')


def _rows(data: Any, lengths: tuple[int, int], where: str, failure: Failure) -> list[list[float]]:
    if not isinstance(data, list):
        raise failure(f"{where}: expected a list of lists of numbers, found {_short(data)}")
    for number, row in enumerate(data):
        numeric = isinstance(row, list) and all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in row
        )
        if not numeric or len(row) not in lengths:
            raise failure(
                f"{where}[{number}]: expected {lengths[0]} numbers for a picture or {lengths[1]} for a volume, "
                f"found {_short(row)}"
            )
    return data


def box_of(numbers: Sequence[float], where: str, space: Space, failure: Failure) -> Box:
    """A box from both corners one after the other."""
    half = len(numbers) // 2
    box = Box(numbers[:half], numbers[half:])
    # In millimetres either corner may be the greater one: axes of the patient and of the file run as they like. A box
    # of a volume may be flat, in one slice.
    bad = [axis for axis, (a, b) in enumerate(zip(box.low, box.high, strict=True)) if b < a or (half == 2 and b == a)]
    if space is Space.GRID and bad:
        name = "xy"[bad[0]] if half == 2 else "ijk"[bad[0]]
        raise failure(
            f"{where}: its second corner must lie beyond the first along {name}, "
            f"found {box.low[bad[0]]:g} and {box.high[bad[0]]:g}",
            remedy="A box is x0,y0,x1,y1, not a corner with width and height",
        )
    return box


def _known(table: Mapping[str, Any], keys: Sequence[str], where: str, failure: Failure) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            raise failure(
                f"{where}: has an unknown entry '{key}'",
                remedy=f"Did you mean '{near[0]}'?" if near else f"Known are: {', '.join(keys)}",
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def table_of(item: Object) -> dict[str, Any]:
    """One object as JSON-able data."""
    table: dict[str, Any] = {"label": item.label}
    if item.space is not Space.GRID:
        table["space"] = item.space.value
    if item.points:
        table |= {"points": [list(p.at) for p in item.points], "point-labels": [int(p.positive) for p in item.points]}
    if item.boxes:
        table["boxes"] = [[*box.low, *box.high] for box in item.boxes]
    if item.mask is not None:
        table["mask"] = {"file": _mask_name(item.mask)} | ({"value": item.mask.value} if item.mask.value else {})
    if item.text:
        table["text"] = item.text
    return table


def _mask_name(mask: Mask) -> str:
    if mask.path is not None:
        return str(mask.path)
    assert mask.array is not None
    return f"array of {mask.array.shape}, SHA-256 {hashlib.sha256(mask.array.tobytes()).hexdigest()[:16]}"


def stamp(prompts: Prompts) -> str:
    """Changes when the prompts do, files of masks included."""
    digest = hashlib.sha256(json.dumps(prompts.as_json(), sort_keys=True).encode())
    for item in [*prompts.objects, *(o for objects in prompts.cases.values() for o in objects)]:
        if item.mask is not None and item.mask.path is not None and item.mask.path.is_file():
            digest.update(item.mask.path.read_bytes())
    return digest.hexdigest()[:20]
