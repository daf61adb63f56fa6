"""Files written whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: Endings that say what a file is and nothing of the case in it.
_ENDINGS = (
    ".gz", ".nii", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm",
    ".mp4", ".avi", ".mkv", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".h5", ".zarr",
    ".fasta", ".fa", ".jsonl", ".csv", ".txt",
)  # fmt: skip


def case_stem(name: str) -> str:
    """Name of a file without the endings that say what it is: ``scan.v2`` of ``scan.v2.nii.gz``."""
    while name.lower().endswith(_ENDINGS) and "." in name[1:]:
        name = name[: name.rindex(".")]
    return name


def natural(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts ``frame2`` before ``frame10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts if part]


def stamp(files: Iterable[Path]) -> str:
    """Changes when the size or time of one of the files does; empty where one cannot be looked at. A folder stands for
    all that is in it."""
    import hashlib

    parts = []
    every = (inner for file in map(Path, files) for inner in (sorted(file.rglob("*")) if file.is_dir() else [file]))
    for file in every:
        try:
            status = Path(file).stat()
        except OSError:
            return ""
        parts.append(f"{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:20]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what was written there gets its name when the block ends well.

    A reader sees the old file or the new one, never a part; an error or Ctrl-C in the block leaves nothing behind.
    Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffixes stay at the end: some writers choose the format by them.
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, "utf-8")
