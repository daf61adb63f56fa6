"""Make the folder of a new plugin from the templates of this package."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from omlab.errors import OutputError, UsageError
from omlab.files import write_text

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")


def create(name: str, kind: str, folder: Path) -> list[Path]:
    """Write the plugin ``name`` of ``kind`` into ``folder``; returns the files written.

    Raises
    ------
    UsageError
        The name is not one that a distribution and an import can have, or the folder holds something already.
    """
    module = f"omlab_{name.replace('-', '_')}"
    if not NAME.match(name) or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' is no name for a plugin",
            remedy="Use lower-case letters, digits and single '-', say 'lung-nodules'",
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty", remedy="Name another folder with -o")
    words = {
        "name": name,
        "module": module,
        "Name": "".join(part.capitalize() for part in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
    }
    templates = files("omlab_sdk") / "templates"
    written = []
    for source in (templates / "common", templates / kind):
        for relative, template in _walk(source):
            text = template.read_text("utf-8")
            for key, value in words.items():
                text = text.replace(f"[[[{key}]]]", value)
            # Template files end in .tmpl, so that no tool takes them for code of this package.
            path = folder / relative.replace("MODULE", module).removesuffix(".tmpl")
            try:
                write_text(path, text)
            except OSError as error:
                raise OutputError(f"{path} cannot be written: {error.strerror}") from None
            written.append(path)
    return written


def _walk(folder: Traversable, prefix: str = "") -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            found += _walk(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry))
    return found
