"""A wild-type sequence an assay, with the mutants that were measured."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omlab.cases import Sequence, read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import file_names, needed
from omlab.errors import InputError
from omlab.results import Scores
from omlab.vocabulary import InputKind

_SUBSTITUTION = re.compile(r"([A-Z])(\d+)([A-Z])\Z")


class ProteinGym(Dataset):
    """``fasta/NAME.fasta`` with ``mutant/NAME.csv``, columns ``mutant`` and ``score`` (measured, more is fitter).

    A model that has an option ``mutants`` is run with the assay's own.
    """

    tells_extra = False

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Assays in order of their names."""
        root = needed(root, self.card.name)
        if split not in (None, "test"):
            return
        wanted = set(self.options["assay"])
        tables = set(file_names(root / "mutant", ".csv"))
        for file in file_names(root / "fasta", ".fasta"):
            name = file.removesuffix(".fasta")
            if wanted and name not in wanted:
                continue
            sequence, table = root / "fasta" / file, root / "mutant" / f"{name}.csv"
            there = table.name in tables
            yield Item(
                name=name, split="test", read=partial(read, sequence, kind=(InputKind.SEQUENCE,)),
                reference=partial(measured, table) if there else None, options={"mutants": table} if there else {},
                files=(sequence, table) if there else (sequence,),
            )  # fmt: skip

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Assays without a table or a sequence, and mutants that are none of their sequence."""
        root = needed(root, self.card.name)
        names = {name.removesuffix(".fasta") for name in file_names(root / "fasta", ".fasta")}
        tables = {name.removesuffix(".csv") for name in file_names(root / "mutant", ".csv")}
        for name in sorted(names - tables):
            yield Problem(kind="reference", where=name, what="has no table of mutants")
        for name in sorted(tables - names):
            yield Problem(kind="extra", where=f"mutant/{name}.csv", what="has no sequence")
        for name in sorted(names & tables):
            try:
                case = read(root / "fasta" / f"{name}.fasta", kind=(InputKind.SEQUENCE,))
                mutants = measured(root / "mutant" / f"{name}.csv").columns["mutant"]
            except InputError:
                continue  # told when the case is read
            assert isinstance(case, Sequence)
            wrong = [m for m in mutants if misfit(m, case.residues)]
            if wrong:
                yield Problem(
                    kind="reference", where=f"mutant/{name}.csv",
                    what=f"{len(wrong)} of {len(mutants)} mutants are none of the sequence, first {wrong[0]}: "
                    f"{misfit(wrong[0], case.residues)}",
                )  # fmt: skip

    def published(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, int]:
        """Only of the whole benchmark."""
        return {} if self.options["assay"] else self.card.counts

    def facts(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Mutants of each assay."""
        found: dict[str, str] = {}
        for item in self.items(files, root=root):
            try:
                truth = item.truth()
            except InputError:
                continue  # told by omlab dataset verify
            if truth is not None:
                mutants = truth.columns["mutant"]  # type: ignore[attr-defined]
                found[item.name] = f"{len(mutants):,} mutants, {sum(':' in m for m in mutants):,} of them multiple"
        return {"Assays": found}


def measured(path: Path) -> Scores:
    """The table of an assay: columns ``mutant`` and ``score``.

    Raises
    ------
    omlab.errors.InputError
        A column is missing, a mutant is there twice, a measurement is no finite number.
    """
    fitness: dict[str, float] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in ("mutant", "score") if name not in (rows.fieldnames or ())]
            if lacking:
                raise InputError(f"{path.name}: has no column '{lacking[0]}'")
            for row in rows:
                mutant, text = (row["mutant"] or "").strip(), (row["score"] or "").strip()
                try:
                    value = float(text)
                except ValueError:
                    value = math.nan
                if not math.isfinite(value):
                    raise InputError(f"{path.name}, line {rows.line_num}: '{text}' of {mutant} is no finite number")
                if mutant in fitness:
                    raise InputError(f"{path.name}, line {rows.line_num}: the mutant {mutant} is there twice")
                fitness[mutant] = value
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return Scores(columns={"mutant": list(fitness), "score": list(fitness.values())})


def misfit(mutant: str, residues: str) -> str:
    """Why a mutant is none of the sequence; empty if it is."""
    for part in mutant.split(":"):
        matched = _SUBSTITUTION.match(part)
        if matched is None:
            return f"'{part}' is no substitution, expected A25G"
        old, place = matched[1], int(matched[2])
        if not 1 <= place <= len(residues):
            return f"{part} lies outside of {len(residues)} residues"
        if residues[place - 1] != old:
            return f"residue {place} is {residues[place - 1]}, not {old}"
    return ""
