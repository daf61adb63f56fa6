"""Mutants: how they are written, whether they fit a sequence, and their zero-shot score.

The score of a mutant is the sum over its substitutions of log p(new) - log p(old), with the probabilities that the
network gives at that position of the unmasked wild type (wild-type marginals; PRIME's ``zero_shot`` rule). One pass
over the protein so scores every mutant of it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError
from omlab_prime.vocabulary import AMINO_ACIDS, ID

_WRITTEN = re.compile(r"([A-Z])(\d+)([A-Z])\Z")
#: What a table may call the unchanged protein; it scores 0.
WILD_TYPE = ("wt", "wildtype", "wild-type", "_wt")
#: Greatest number of residues that a legacy model looks at.
WINDOW = 4096


@attrs.frozen
class Substitution:
    """One residue for another.

    Attributes
    ----------
    old, new : one-letter codes.
    position : from 1.
    """

    old: str
    position: int
    new: str


def parse(text: str) -> tuple[Substitution, ...]:
    """``"A25G:L30P"``; the wild type has no substitution. Raises ``ValueError`` for anything else."""
    text = text.strip()
    if text.lower() in WILD_TYPE:
        return ()
    found = []
    for part in text.split(":"):
        written = _WRITTEN.match(part.strip().upper())
        if written is None or int(written[2]) < 1:
            raise ValueError(f"'{part.strip()}' is no substitution; write A25G, several joined by ':'")
        found.append(Substitution(written[1], int(written[2]), written[3]))
    return tuple(found)


def misfit(mutant: Sequence[Substitution], residues: str) -> str:
    """Why a mutant is none of ``residues``; empty if it is."""
    positions = [one.position for one in mutant]
    for one in mutant:
        if one.position > len(residues):
            return f"position {one.position} is behind the end, the sequence has {len(residues)} residues"
        present = residues[one.position - 1]
        if present != one.old:
            return f"residue {one.position} is {present}, not {one.old}"
        if one.new not in ID:
            return f"'{one.new}' is no residue that PRIME knows"
    twice = next((p for p in positions if positions.count(p) > 1), None)
    return f"position {twice} is changed twice" if twice else ""


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-soft-max over all 33 tokens, special ones too; [residues, 33] float32 to the same."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float32))


def score(mutant: Sequence[Substitution], scores: NDArray[np.float32], *, first: int = 0) -> float:
    """Score of one mutant from log-probabilities [residues, 33] whose first row is residue ``first``; greater is
    fitter. Differences in float32, their sum in float64, as upstream has it. Substitutions outside add nothing."""
    total = 0.0
    for one in mutant:
        row = one.position - 1 - first
        if 0 <= row < len(scores):
            total += float(scores[row, ID[one.new]] - scores[row, ID[one.old]])
    return total


@attrs.frozen
class Table:
    """Mutants of a file with its other columns.

    Attributes
    ----------
    written : as in the file.
    mutants : their substitutions.
    others : further columns, carried through to the result.
    """

    written: tuple[str, ...]
    mutants: tuple[tuple[Substitution, ...], ...]
    others: dict[str, tuple[str, ...]]


def read(path: Path) -> Table:
    """A CSV file with a column ``mutant``, or a text file with a mutant a line.

    Raises
    ------
    omlab.errors.InputError
        The file is missing, no text, empty, or a line is no mutant; the message tells the first line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist, a table of mutants was expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text, byte {error.start} cannot be read") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"{path}: is empty, a table of mutants was expected")
    head = text.splitlines()[0]
    names = [name.strip() for name in next(csv.reader([head], delimiter=max(",\t;", key=head.count)), [])]
    if "mutant" in names:
        rows = csv.DictReader(io.StringIO(text), fieldnames=names, delimiter=max(",\t;", key=head.count))
        lines = [(number, row) for number, row in enumerate(rows, start=1) if number > 1 and row["mutant"]]
    elif len(names) == 1:
        lines = [(n, {"mutant": line}) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    else:
        raise InputError(f"{path}: has no column 'mutant', it has {', '.join(names)}")
    if not lines:
        raise InputError(f"{path}: holds no mutant")
    mutants = []
    for number, row in lines:
        try:
            mutants.append(parse(row["mutant"]))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    carried = [name for name in names if name != "mutant"] if len(names) > 1 else []
    others = {name: tuple(str(row.get(name) or "") for _, row in lines) for name in carried}
    return Table(tuple(row["mutant"].strip() for _, row in lines), tuple(mutants), others)


def demand(table: Table, residues: str, name: str) -> None:
    """Raise :class:`omlab.errors.InputError` if a mutant is none of ``residues``."""
    wrong = [(text, why) for text, m in zip(table.written, table.mutants, strict=True) if (why := misfit(m, residues))]
    if wrong:
        more = f" (and {len(wrong) - 1} more of {len(table.written)} do not fit)" if len(wrong) > 1 else ""
        raise InputError(
            f"{name}: the mutant '{wrong[0][0]}' does not fit: {wrong[0][1]}{more}",
            remedy="Are the mutants of this protein, and counted from its first residue?",
        )


def saturation(residues: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Score of every single substitution by one of the twenty amino acids, [residues, 20]; 0 where nothing changes."""
    columns = [ID[letter] for letter in AMINO_ACIDS]
    present = np.array([ID[letter] for letter in residues])
    return scores[:, columns] - scores[np.arange(len(residues)), present][:, None]


def ensemble(scores: Iterable[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Scores of several models as one: each brought to 0..1 over all mutants, then added (the authors' rule for their
    five models of one protein). A model that gives all mutants one score adds nothing."""
    total: NDArray[np.float64] | None = None
    for each in scores:
        values = np.asarray(each, np.float64)
        span = values.max() - values.min()
        scaled = (values - values.min()) / (span or 1.0)
        total = scaled if total is None else total + scaled
    if total is None:
        raise ValueError("an ensemble has at least one model")
    return total


def window(positions: Sequence[int], length: int) -> tuple[int, int]:
    """First residue and one past the last that a legacy model looks at, from 0, for mutated ``positions`` from 0.

    The whole protein if it fits; else the first :data:`WINDOW` residues if they hold all positions; else, if one window
    can hold them all, that which ends with the last of them; else the window with most of them, the first of equals.
    """
    if length <= WINDOW:
        return 0, length
    low, high = min(positions, default=0), max(positions, default=0)
    if high < WINDOW:
        return 0, WINDOW
    if high - low < WINDOW:
        return high + 1 - WINDOW, high + 1
    marked = np.zeros(length + 1, np.int64)
    np.add.at(marked, np.asarray(positions) + 1, 1)
    counts = np.cumsum(marked)
    held = counts[WINDOW:] - counts[:-WINDOW]
    start = int(np.argmax(held))
    return start, start + WINDOW
