"""Files of a dataset that lie in folders or still in zip archives, told by the end of their names."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import attrs

from omlab.errors import InputError
from omlab.files import stamp

_NUMBER = re.compile(r"(\d+)\Z")


@attrs.frozen
class Entry:
    """A file: of a folder, or a member of an archive.

    Attributes
    ----------
    holder : the file itself, or the archive.
    member : name in the archive; empty for a file.
    """

    holder: Path
    member: str = ""

    @property
    def name(self) -> str:
        """Its name without folders."""
        return PurePosixPath(self.member).name if self.member else self.holder.name

    def read(self) -> bytes:
        """Its bytes. Raises :class:`omlab.errors.InputError` for a file or archive that is damaged."""
        try:
            if not self.member:
                return self.holder.read_bytes()
            return _archive(self.holder, stamp([self.holder])).read(self.member)
        except (OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
            raise InputError(f"{self.holder.name}: {self.name} cannot be read: {error}") from None


@lru_cache(maxsize=8)
def _archive(path: Path, state: str) -> zipfile.ZipFile:
    """An open archive: its list of twenty thousand members is read once and not for each tile."""
    return zipfile.ZipFile(path)


def entries(places: Sequence[Path], endings: tuple[str, ...]) -> Iterator[Entry]:
    """Files with these endings in folders and archives, in order.

    Raises
    ------
    omlab.errors.InputError
        An archive is damaged.
    """
    for place in places:
        if place.suffix == ".zip":
            try:
                with zipfile.ZipFile(place) as archive:
                    names = sorted(archive.namelist())
            except (OSError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"{place}: is no whole archive: {error}", remedy="Fetch it again; it may be half downloaded"
                ) from None
            for name in names:
                if name.lower().endswith(endings) and not PurePosixPath(name).name.startswith("."):
                    yield Entry(place, name)
            continue
        for folder, below, names in os.walk(place):
            below.sort()
            for name in sorted(names):
                if name.lower().endswith(endings) and not name.startswith("."):
                    yield Entry(Path(folder) / name)


def by_stem(found: Iterator[Entry]) -> dict[str, Entry]:
    """Name without its ending -> entry. Raises :class:`omlab.errors.InputError` for a name that is there twice."""
    named: dict[str, Entry] = {}
    for entry in found:
        stem = PurePosixPath(entry.name).stem
        if stem in named:
            raise InputError(f"{entry.name}: is there twice, in {named[stem].holder.name} and {entry.holder.name}")
        named[stem] = entry
    return named


def partner(stem: str, others: dict[str, Entry], numbers: dict[int, str]) -> Entry | None:
    """The entry of the same name, else the one whose name ends in the same number."""
    if stem in others:
        return others[stem]
    matched = _NUMBER.search(stem)
    other = numbers.get(int(matched[1])) if matched else None
    return others[other] if other is not None else None


def numbered(named: dict[str, Entry]) -> dict[int, str]:
    """Number at the end of a name -> name, where it tells all of them apart."""
    found: dict[int, str] = {}
    for stem in named:
        matched = _NUMBER.search(stem)
        if matched is None or int(matched[1]) in found:
            return {}
        found[int(matched[1])] = stem
    return found


def stream(entry: Entry) -> io.BytesIO:
    """Its bytes as a file."""
    return io.BytesIO(entry.read())
