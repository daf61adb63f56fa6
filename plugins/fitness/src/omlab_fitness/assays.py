"""Tables of mutants: scores and measurements side by side, and their rank correlation."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from omlab.errors import InputError
from omlab.results import Result, Scores

#: Draws of one block of the bootstrap, in numbers.
_HELD = 1 << 22


@attrs.frozen(eq=False)
class Assay:
    """One assay.

    Attributes
    ----------
    mutants : as written in the assay's file.
    predicted, measured : [mutants] float64, in that order.
    left_out : mutants that only one of the files has.
    """

    name: str
    mutants: tuple[str, ...]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    left_out: int = 0

    @property
    def multiple(self) -> int:
        """Mutants with more than one substitution."""
        return sum(":" in mutant for mutant in self.mutants)

    @property
    def undefined(self) -> str:
        """Why there is no rank correlation; empty where there is one."""
        for what, values in (("scores", self.predicted), ("measurements", self.measured)):
            if values.min() == values.max():
                return f"all {what} are {values[0]:g}, so they have no ranks"
        return ""


def column_of(path: Path, column: str) -> dict[str, float]:
    """Mutant -> value of a column of a CSV file, in the order of the file.

    Raises
    ------
    omlab.errors.InputError
        The file or column is missing, a mutant is there twice, a value is no finite number.
    """
    found: dict[str, float] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in ("mutant", column) if name not in (rows.fieldnames or ())]
            if lacking:
                has = ", ".join(rows.fieldnames or ()) or "nothing"
                raise InputError(f"{path.name}: has no column '{lacking[0]}', it has {has}")
            for row in rows:
                mutant, text = (row["mutant"] or "").strip(), row[column] or ""
                try:
                    value = float(text)
                except ValueError:
                    value = math.nan
                if not math.isfinite(value):
                    raise InputError(f"{path.name}, line {rows.line_num}: '{text}' of {mutant} is no finite number")
                if mutant in found:
                    raise InputError(f"{path.name}, line {rows.line_num}: the mutant {mutant} is there twice")
                found[mutant] = value
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, a table of mutants was expected") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return found


def values_of(name: str, result: Result, column: str) -> dict[str, float]:
    """Mutant -> value of a column of a table of scores.

    Raises
    ------
    omlab.errors.InputError
        It is no table with these columns, a mutant is there twice, a value is no finite number.
    """
    columns = result.columns if isinstance(result, Scores) else {}
    lacking = next((key for key in ("mutant", column) if key not in columns), None)
    if lacking is not None:
        raise InputError(f"{name}: the answer has no column '{lacking}', a table of mutants was expected")
    mutants, values = [str(m) for m in columns["mutant"]], np.asarray(columns[column], np.float64)
    found = dict(zip(mutants, values.tolist(), strict=True))
    if len(found) != len(mutants):
        raise InputError(f"{name}: {len(mutants) - len(found)} mutants are there twice")
    odd = next((mutant for mutant, value in found.items() if not math.isfinite(value)), None)
    if odd is not None:
        raise InputError(f"{name}: '{column}' of {odd} is no finite number")
    return found


def join(name: str, scores: dict[str, float], fitness: dict[str, float], *, partial: bool) -> Assay:
    """Scores and measurements of the same mutants.

    Raises
    ------
    omlab.errors.InputError
        Mutants that only one side has (unless ``partial``), or fewer than three in common.
    """
    unscored = [mutant for mutant in fitness if mutant not in scores]
    unknown = [mutant for mutant in scores if mutant not in fitness]
    if (unscored or unknown) and not partial:
        count, which, first = (
            (len(unscored), "measured mutants have no score", unscored[0])
            if unscored
            else (len(unknown), "scored mutants were not measured", unknown[0])
        )
        raise InputError(f"{name}: {count} {which}, first {first}", remedy="Use --partial to leave them out")
    mutants = tuple(mutant for mutant in fitness if mutant in scores)
    if len(mutants) < 3:
        raise InputError(f"{name}: {len(mutants)} mutants are in both files, a correlation needs three")
    predicted = np.array([scores[mutant] for mutant in mutants])
    measured = np.array([fitness[mutant] for mutant in mutants])
    return Assay(name, mutants, predicted, measured, len(unscored) + len(unknown))


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho along the last axis; equals share the mean of their ranks. NaN where one side is constant."""
    ranks = [stats.rankdata(values, axis=-1) for values in (a, b)]
    x, y = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    norms = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((x * y).sum(axis=-1) / norms)


def draws(assay: Assay, *, rounds: int, seed: int) -> NDArray[np.float64]:
    """[rounds] correlations of mutants drawn with replacement."""
    generator = np.random.default_rng(seed)
    count = len(assay.mutants)
    step = max(1, _HELD // count)
    found = []
    for start in range(0, rounds, step):
        chosen = generator.integers(0, count, (min(step, rounds - start), count))
        found.append(spearman(assay.predicted[chosen], assay.measured[chosen]))
    return np.concatenate(found) if found else np.empty(0)
