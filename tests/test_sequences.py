"""Protein sequences as cases: which files hold some, and what is wrong with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from omlab.cases import Sequence, sequences
from omlab.errors import InputError


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def test_records_of_a_fasta_file(tmp_path: Path) -> None:
    path = written(tmp_path, "p.fasta", ";note\n>a first one\r\nmk\r\nTA*\n>\nM K\n>b\n\n>c\nMΩ\n>d\n" + "M" * 200_000)
    found = dict(sequences.read_all(path))
    first, second, long = found["a"], found["sequence-2"], found["d"]
    assert isinstance(first, Sequence) and (first.residues, first.description) == ("MKTA", "first one")
    assert isinstance(second, Sequence) and second.residues == "MK"
    assert isinstance(long, Sequence) and len(long.residues) == 200_000
    assert "the sequence 'b' is empty" in str(found["b"]) and "'Ω' at position 2" in str(found["c"])


def test_a_row_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", f"id,sequence\na,MK\nb,{'M' * 140_000}\nc,MKT\nd\n")
    found = dict(sequences.read_all(path))
    assert [name for name, case in found.items() if isinstance(case, Sequence)] == ["a", "c"]
    broken = found["sequence-2"]
    assert isinstance(broken, InputError) and "after line 2: field larger than field limit" in broken.message
    assert "as FASTA" in str(broken.remedy)
    assert "the sequence 'd' is empty" in str(found["d"])


@pytest.mark.parametrize(
    ("content", "says"), [(" \n", "is empty"), ("a,b\n1,2\n", "neither FASTA nor a table with a column 'sequence'")]
)
def test_a_file_without_sequences_says_why(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sequences.read_all(written(tmp_path, "x.csv", content))
