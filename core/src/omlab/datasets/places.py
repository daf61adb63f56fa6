"""How a dataset is named, and where it lies.

A dataset is named ``NAME``, ``NAME:PATH``, or ``NAME,OPTION=VALUE,...:PATH``. Without a path it is looked for in a
folder of its name below the roots of ``OMLAB_DATASETS``, then below ``OMLAB_HOME``/datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from omlab.cards import DatasetCard
from omlab.errors import UsageError
from omlab.settings import Settings


@attrs.frozen
class Named:
    """What a user wrote.

    Attributes
    ----------
    options : option -> value, or values where it was given several times.
    path : empty where none was given.
    """

    name: str
    options: Mapping[str, Any]
    path: str = ""


def parse(text: str) -> Named:
    """``NAME[,OPTION=VALUE...][:PATH]`` in its parts. Raises :class:`omlab.errors.UsageError`."""
    head, _, path = text.partition(":")
    name, *pairs = head.split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"'{text}': '{pair}' is no option of a dataset", remedy="Write NAME,OPTION=VALUE,...[:PATH]"
            )
        key = key.strip().replace("-", "_")
        if key in options:
            before = options[key]
            options[key] = [*before, value] if isinstance(before, list) else [before, value]
        else:
            options[key] = value
    return Named(name, options, path)


def typed(card: DatasetCard, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a card takes them: words for yes and no, lists where it takes several.

    Raises
    ------
    UsageError
        An option that the card does not have, or a value of the wrong type.
    """
    from omlab.loading import options_of

    known = {option.name.replace("-", "_"): option for option in card.options}
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    values: dict[str, Any] = {}
    for key, value in given.items():
        option = known.get(key.replace("-", "_"))
        if option is None:
            values[key] = value  # told by options_of, with near names
        elif option.many:
            values[key] = [value] if isinstance(value, str) else value
        elif isinstance(value, list):
            raise UsageError(f"'{card.name}': option '{option.name}' was given {len(value)} times")
        elif option.type == "bool" and isinstance(value, str):
            values[key] = words.get(value.lower(), value)
        else:
            values[key] = value
    return options_of(card, values)


def find_place(card: DatasetCard, settings: Settings) -> Path | None:
    """The folder of a dataset below the roots; ``None`` where there is none."""
    for root in settings.all_dataset_roots:
        if (root / card.name).is_dir():
            return root / card.name
    return None


def steps(card: DatasetCard, settings: Settings) -> list[str]:
    """How a person obtains the dataset and where it goes, one sentence or command a step."""
    if not card.obtain:
        return []
    place = settings.all_dataset_roots[0] / card.name
    last = f"Put it at {place}, or name your own folder: {card.name}:PATH"
    if card.layout:
        last += f". In that folder: {', '.join(card.layout)}"
    return [*card.obtain, last, f"Check it: omlab dataset verify {card.name}"]
