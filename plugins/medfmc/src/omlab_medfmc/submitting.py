"""Submission files out: the scores of a run, in the order and form that the challenge takes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab_medfmc.sets import Set, keep, stem_of, text_of

#: Digits that upstream writes.
_DIGITS = 8
_NAMES = ("case", "name", "image")


def read_scores(path: Path, which: Set) -> dict[str, NDArray[np.float64]]:
    """Image (without its ending) -> [classes] scores of a table: ``cases.csv`` of ``omlab run``, or a column ``name``
    and one for every class, called after it or ``p(class)``.

    Raises
    ------
    omlab.errors.InputError
        A column is missing, a case failed, a score is no finite number, an image is there twice.
    """
    rows = csv.DictReader(io.StringIO(text_of(path)))
    columns = rows.fieldnames or ()
    naming = next((name for name in _NAMES if name in columns), None)
    if naming is None:
        raise InputError(f"{path.name}: has no column that names the image ({', '.join(_NAMES)})")
    wanted = [f"p({name})" if f"p({name})" in columns else name for name in which.classes]
    lacking = [name for name in wanted if name not in columns]
    if lacking:
        raise InputError(
            f"{path.name}: has no column '{lacking[0]}'",
            remedy=f"The classes of {which.name} are {', '.join(which.classes)}",
        )
    found: dict[str, NDArray[np.float64]] = {}
    for row in rows:
        image = stem_of((row[naming] or "").strip())
        if row.get("status") == "failed":
            raise InputError(f"{path.name}: the case '{image}' failed: {row.get('cause') or 'no cause is told'}")
        keep(found, image, [row[name] for name in wanted], f"{path.name}, line {rows.line_num}")
    if not found:
        raise InputError(f"{path.name}: holds no score")
    return found


def submission(scores: Mapping[str, NDArray[np.float64]], images: Iterable[str], name: str) -> str:
    """The text of a submission: a line an image in the order of ``images``, commas between, no header.

    Parameters
    ----------
    scores : of every image without its ending; of more images than asked for is no fault.
    name : of the table, for messages.

    Raises
    ------
    omlab.errors.InputError
        An image has no scores.
    """
    order = list(images)
    absent = [image for image in order if stem_of(image) not in scores]
    if absent:
        raise InputError(f"{name}: {len(absent)} of {len(order)} images have no scores, first {absent[0]}")
    lines = []
    for image in order:
        values = (np.format_float_positional(v, _DIGITS, trim="0") for v in scores[stem_of(image)])
        lines.append(",".join([image, *values]))
    return "\n".join(lines) + "\n"
