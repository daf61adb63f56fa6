"""One table of all cases of a run, for a spreadsheet: what came of each, and its numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.files import write_text

if TYPE_CHECKING:
    from omlab.running import Run

NAME = "cases.csv"


def write(out: Path, rows: Sequence[Run], result: str) -> Path:
    """Write ``cases.csv`` into ``out``: a row a case in the order of the run.

    Columns are case, status, headline and cause of a failure, then every measurement, the probability of every class
    (``p(class)``) and the volume of every structure in ml (``volume_ml(structure)``) that any case has.

    Parameters
    ----------
    result : name of the record in each case's folder.
    """
    numbers = [_numbers(row.folder / result) if row.folder is not None else {} for row in rows]
    columns = list(dict.fromkeys(name for found in numbers for name in found))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "status", "headline", "cause", *columns])
    for row, found in zip(rows, numbers, strict=True):
        writer.writerow([row.name, row.status, row.headline, row.cause, *(found.get(name, "") for name in columns)])
    path = out / NAME
    write_text(path, text.getvalue())
    return path


def _numbers(record: Path) -> dict[str, Any]:
    """The numbers of a finished case; none where its record cannot be read."""
    try:
        facts = json.loads(record.read_text("utf-8"))["result"]
    except (OSError, ValueError, KeyError):
        return {}
    found = dict(facts.get("measurements", {}))
    probabilities = facts.get("probabilities")
    if isinstance(probabilities, Mapping):
        found |= {f"p({name})": value for name, value in probabilities.items()}
    for structure in facts.get("structures", ()):
        if "volume_ml" in structure:
            found[f"volume_ml({structure['name']})"] = structure["volume_ml"]
    return found
