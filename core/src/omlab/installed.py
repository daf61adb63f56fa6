"""Which distributions have an entry point of omlab.

The files of the packaging standard are read directly: ``entry_points.txt`` in the metadata folders on ``sys.path``.
The general library (importlib_metadata) answers the same, and ``omlab doctor`` asks it to check this module, but
importing it and letting it parse the metadata of every distribution takes as long as all the rest of ``omlab list``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator

import attrs

GROUP = "omlab"
_FOLDERS = (".dist-info", ".egg-info")


@attrs.frozen
class Candidate:
    """An entry point as found, before its manifest is read."""

    plugin: str
    package: str
    distribution: str
    version: str


def installed(path: Iterable[str] | None = None) -> list[Candidate]:
    """Entry points of the group, the owner of a name by convention first, then by distribution.

    Where a distribution is on the path twice the first one counts, as for imports.
    """
    found: list[Candidate] = []
    seen: set[str] = set()
    for folder in sys.path if path is None else path:
        try:
            entries = list(os.scandir(folder or "."))
        except OSError:
            continue  # a zip archive or a folder that is gone: no plugin is installed there
        for entry in entries:
            if entry.name.endswith(_FOLDERS):
                found += _plugins_of(entry.path, seen)
    # The order decides who keeps a name that two plugins claim: the core, then the plugin named after it.
    return sorted(
        found,
        key=lambda c: (c.distribution != "omlab", c.distribution != f"omlab-{c.plugin}", c.distribution, c.plugin),
    )


def _plugins_of(folder: str, seen: set[str]) -> Iterator[Candidate]:
    entries = list(_entry_points(f"{folder}/entry_points.txt"))
    if not entries:
        return
    name, version = _metadata(folder)
    normal = re.sub(r"[-_.]+", "-", name).lower()
    if normal in seen:
        return
    seen.add(normal)
    for plugin, value in entries:
        yield Candidate(plugin, value.partition(":")[0].strip(), name, version)


def _entry_points(path: str) -> Iterator[tuple[str, str]]:
    """(name, value) of the lines of our group."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        return
    if f"[{GROUP}]" not in text:
        return
    section = ""
    for line in text.splitlines():
        line = line.strip()  # noqa: PLW2901
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == GROUP and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _metadata(folder: str) -> tuple[str, str]:
    """Name and version, from the head of the metadata; from the folder's name where there is none."""
    found: dict[str, str] = {}
    for file_name in ("METADATA", "PKG-INFO"):
        try:
            with open(f"{folder}/{file_name}", encoding="utf-8", errors="replace") as file:
                for line in file:
                    key, colon, value = line.partition(":")
                    if not colon or len(found) == 2:
                        break
                    if key in ("Name", "Version"):
                        found[key] = value.strip()
            break
        except OSError:
            continue
    stem, _, version = os.path.basename(folder).rsplit(".", 1)[0].partition("-")
    return found.get("Name", stem.replace("_", "-")), found.get("Version", version)
