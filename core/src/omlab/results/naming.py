"""Names of classes where the weights are the user's own, so that no card can know them."""

from __future__ import annotations

from collections.abc import Sequence

from omlab.cards import LabelCard
from omlab.errors import UsageError
from omlab.results.colours import colour_of
from omlab.results.types import Label


def class_names(count: int, labels: Sequence[LabelCard] = (), given: str = "") -> tuple[str, ...]:
    """A name for each of ``count`` classes: those ``given`` with commas between, else the card's ``labels``, else
    "class 0", "class 1" and so on.

    Raises
    ------
    omlab.errors.UsageError
        There are more or fewer names than classes, or a name is empty or there twice.
    """
    if given:
        names = tuple(name.strip() for name in given.split(","))
        if len(names) != count:
            raise UsageError(
                f"{len(names)} names are given, the network tells {count} classes apart",
                remedy="Name every class, in the order of training, with commas between",
            )
        if not all(names) or len(set(names)) < count:
            raise UsageError(
                f"'{given}' has a name that is empty or there twice", remedy="Give each class its own name"
            )
        return names
    known = {label.value: label.name for label in labels}
    return tuple(known.get(value, f"class {value}") for value in range(count))


def structures_of(count: int, labels: Sequence[LabelCard] = (), given: str = "") -> tuple[Label, ...]:
    """Structures of a label map with ``count`` classes, the background left out, named as :func:`class_names` does.

    Numbers that the card's ``labels`` leave out have no structure; a network may have scores for them nevertheless.
    """
    names = class_names(count, labels, given)
    kept = {label.value for label in labels} if labels and not given else set(range(count))
    return tuple(
        Label(value=value, name=name, colour=colour_of(value))
        for value, name in enumerate(names)
        if value and value in kept
    )
