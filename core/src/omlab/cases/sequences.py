"""Protein sequences: FASTA, and tables with a column of sequences. Every record is a case."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from omlab.cases.types import Case, Sequence, Source
from omlab.errors import InputError, OmlabError

#: Columns that may name a row, the first that is there.
_NAMES = ("name", "id", "identifier", "accession", "protein")
_COLUMN = "sequence"


def read_all(path: Path) -> list[tuple[str, Case | OmlabError]]:
    """Every record of a FASTA file or table: its name, and its case or why it cannot be one.

    Letters become upper case; white space and a stop (``*``) at the end are dropped. What a letter means, and whether
    it may occur, is for the model to say.

    Raises
    ------
    omlab.errors.InputError
        The file is no UTF-8 text, holds no record, or is neither FASTA nor a table with a column ``sequence``.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: is no UTF-8 text, byte {error.start} cannot be read") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"{path.name}: is empty, expected FASTA or a table with a column '{_COLUMN}'")
    fasta = text.lstrip()[:1] in (">", ";")
    records = list(_fasta(text) if fasta else _table(text, path.name))
    if not records:
        raise InputError(f"{path.name}: holds no sequence")
    return [(name, _case(path, name, residues, note, fasta)) for name, residues, note in records]


def _fasta(text: str) -> Iterator[tuple[str, str | InputError, str]]:
    """(name, residues, description) of every record; lines that begin with a semicolon are comments."""
    name, note, lines, number = "", "", [], 0
    for line in text.splitlines():
        if line.startswith(">"):
            if number:
                yield name, "".join(lines), note
            number += 1
            words = line[1:].split(None, 1)
            name = words[0] if words else f"sequence-{number}"
            note, lines = (words[1].strip() if len(words) > 1 else ""), []
        elif not line.startswith(";"):
            if line.strip() and not number:
                number, name = 1, "sequence-1"
            lines.append(line)
    if number:
        yield name, "".join(lines), note


def _table(text: str, file: str) -> Iterator[tuple[str, str | InputError, str]]:
    """Like :func:`_fasta`, of a table; the error of a row that cannot be read stands in its place."""
    head = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",\t;", key=head.count)
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    columns = {str(column).strip().lower(): column for column in rows.fieldnames or ()}
    if _COLUMN not in columns:
        raise InputError(
            f"{file}: is neither FASTA nor a table with a column '{_COLUMN}'",
            remedy="Begin each sequence with a line '>name', or name the column in the first line",
        )
    naming = next((columns[name] for name in _NAMES if name in columns), None)
    number = 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            remedy = "Is a quote open? A long sequence is better written as FASTA"
            yield f"sequence-{number}", InputError(f"{file}, after line {rows.line_num}: {error}", remedy=remedy), ""
            continue
        name = (row.get(naming) or "").strip() if naming else ""
        yield name or f"sequence-{number}", row.get(columns[_COLUMN]) or "", ""


def _case(path: Path, name: str, residues: str | InputError, note: str, fasta: bool) -> Case | OmlabError:
    if isinstance(residues, InputError):
        return residues
    residues = "".join(residues.split()).upper().removesuffix("*")
    if not residues:
        return InputError(f"{path.name}: the sequence '{name}' is empty")
    odd = next((place for place, letter in enumerate(residues) if not ("A" <= letter <= "Z" or letter in "-.")), None)
    if odd is not None:
        return InputError(
            f"{path.name}: the sequence '{name}' has '{residues[odd]}' at position {odd + 1}, expected one-letter codes"
            " of amino acids"
        )
    source = Source(path=path, format="fasta" if fasta else "table", files=(path,), details={"length": len(residues)})
    return Sequence(name=name, residues=residues, description=note, source=source)
