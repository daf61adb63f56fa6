"""Few-shot drawing: N cases, or patients, of each class, by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def draw(
    targets: NDArray[Any], shots: int, seed: int, *, groups: Sequence[str] = (), classes: Sequence[str] = ()
) -> tuple[list[int], list[str]]:
    """Indices of the drawn cases, in their old order and each once, and what the reader should know of the draw.

    The classes are gone through one after another. A class that has fewer than ``shots`` gives all that it has, and a
    remark says so. Where cases have several classes, one may be drawn for each of them.

    Parameters
    ----------
    targets : [cases, classes], non-zero where a case is of a class.
    shots : how many of each class.
    groups : patient or study of each case. With them a shot is a group, and brings all of its cases that are of the
        class: so no patient is torn apart. Without (or where one is empty) a shot is a case.
    classes : names, for the remarks.

    Raises
    ------
    ValueError
        ``shots`` is less than 1, or groups are not as many as cases.
    """
    if shots < 1:
        raise ValueError(f"at least one shot is drawn, found {shots}")
    if groups and len(groups) != len(targets):
        raise ValueError(f"{len(groups)} groups for {len(targets)} cases")
    generator = np.random.default_rng(seed)
    what = "patients" if any(groups) else "cases"
    chosen: set[int] = set()
    remarks = []
    for number in range(targets.shape[1]):
        of_class = np.flatnonzero(targets[:, number]).tolist()
        # A case of an unknown patient counts as a patient of its own.
        units: dict[Any, list[int]] = {}
        for index in of_class:
            units.setdefault((groups[index] if groups else "") or index, []).append(index)
        if len(units) < shots:
            name = classes[number] if classes else f"class {number}"
            remarks.append(f"'{name}' has {len(units)} training {what}, fewer than {shots} shots: all were taken")
        keys = list(units)
        drawn = generator.permutation(len(keys))[:shots]  # also drawn where all are taken: later classes stay the same
        chosen.update(index for place in drawn for index in units[keys[place]])
    return sorted(chosen), remarks
