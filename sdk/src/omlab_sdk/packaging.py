"""A model directory as a plugin: a folder that pip installs, with the model inside."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs

from omlab import manifest
from omlab.adapter import TRAINING
from omlab.api import directory_card, model_directory
from omlab.errors import InputError, OutputError, UsageError
from omlab.files import write_text
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_sdk.scaffold import NAME

_INSIDE = "model"
#: Beyond this many bytes the public package index takes no file without asking.
_INDEX_LIMIT = 100_000_000


@attrs.frozen
class Packaged:
    """What was made.

    Attributes
    ----------
    notes : what its maker should know before giving it away, a line each.
    """

    folder: Path
    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def package(
    model: str | Path, *, name: str | None = None, version: str = "0.1.0", out: str | Path | None = None,
    registry: Registry | None = None,
) -> Packaged:  # fmt: skip
    """Make the plugin ``omlab-<name>`` of a model directory.

    Raises
    ------
    InputError
        It is no model directory, or what it was made with is not installed here.
    UsageError
        The name is none for a distribution or is taken, or ``out`` is not empty.
    OutputError
        It cannot be written.
    """
    source = model_directory(Path(model))
    assert source is not None
    card, _ = directory_card(source)
    registry = registry or Registry.discover()
    name = name or card.name.replace("_", "-").replace(".", "-")
    if not NAME.match(name):
        raise UsageError(f"'{name}' is no name for a plugin", remedy="Give one with --name, say 'lung-nodules'")
    if name in registry.cards(Kind.MODEL):
        raise UsageError(f"there is a model '{name}' already", remedy="Give another name with --name")
    folder = Path(out) if out is not None else Path(f"omlab-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty", remedy="Name another folder with -o")
    module = f"omlab_{name.replace('-', '_')}"
    package_folder = folder / "src" / module
    requires = sorted(set(_requirements(source, registry)))
    try:
        shutil.copytree(source, package_folder / _INSIDE, ignore=shutil.ignore_patterns(TRAINING, ".*"))
        (package_folder / _INSIDE / manifest.NAME).unlink()
        tables = _renamed(source, name)
        write_text(package_folder / _INSIDE / manifest.NAME, _toml(tables))
        write_text(package_folder / manifest.NAME, _toml({"api": manifest.API, "model": tables["model"]}))
        write_text(package_folder / "__init__.py", _HOOK.format(title=_one_line(card.title or name)))
        write_text(folder / "pyproject.toml", _project(name, module, version, card, requires))
        write_text(folder / "README.md", _readme(source, name, card))
        write_text(folder / "LICENSE", (files("omlab_sdk") / "templates/common/LICENSE.tmpl").read_text("utf-8"))
    except OSError as error:
        why = error.strerror or error
        raise OutputError(f"{folder} cannot be made: {why}", remedy="Name another with -o") from None
    made = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    return Packaged(folder, name, made, tuple(_notes(card, made)))


def _renamed(source: Path, name: str) -> dict[str, Any]:
    tables = tomllib.loads((source / manifest.NAME).read_text("utf-8"))
    tables["model"][0]["name"] = name
    return tables


def _requirements(source: Path, registry: Registry) -> list[str]:
    """Distributions of the adapter and of the base, of a chain all."""
    _, adapted = directory_card(source)
    found = [_distribution(Kind.ADAPTER, str(adapted["adapter"]), registry)]
    if "base" in adapted:
        return found + _requirements(source / str(adapted["base"]), registry)
    return [*found, _distribution(Kind.MODEL, str(adapted["model"]), registry)]


def _distribution(kind: Kind, name: str, registry: Registry) -> str:
    plugin = next((one for one in registry.plugins.values() if (kind, name) in one.contributions), None)
    if plugin is None:
        raise InputError(
            f"the {kind.value} '{name}' that the model was made with is not installed here",
            remedy="Install its plugin, so that the package can name it",
        )
    return f"{plugin.distribution}>={plugin.version}"


def _project(name: str, module: str, version: str, card: Any, requires: list[str]) -> str:
    tables: dict[str, Any] = {
        "build-system": {"requires": ["hatchling>=1.27"], "build-backend": "hatchling.build"},
        "project": {
            "name": f"omlab-{name}", "version": version, "description": _one_line(card.summary), "readme": "README.md",
            "requires-python": ">=3.11", "license-files": ["LICENSE"],
            "dependencies": ["omlab>=0.1,<1", *requires],
            "entry-points": {"omlab": {name: module}},
        },
        "tool": {"hatch": {"build": {"targets": {"wheel": {"packages": [f"src/{module}"]}}}}},
    }  # fmt: skip
    return _toml(tables)


def _readme(source: Path, name: str, card: Any) -> str:
    report: Mapping[str, Any] = {}
    if (source / "report.json").is_file():
        report = json.loads((source / "report.json").read_text("utf-8"))
    lines = [f"# omlab-{name}", "", f"{card.title or name}: {card.summary}", "", f"    pip install omlab-{name}",
             f"    omlab run {name} FILE", ""]  # fmt: skip
    if report:
        made = f"Made by `omlab adapt` ({report.get('adapter')}) from {report.get('base')} on {report.get('dataset')}"
        lines += [f"{made}, {report.get('made', '')}.", ""]
        measured = {
            key: value for key, value in report.items()
            if key.split("_")[0] in ("train", "val", "test") and isinstance(value, int | float)
        }  # fmt: skip
        lines += ["| measured | |", "|---|--:|", *(f"| {key.replace('_', ' ')} | {value:.4g} |" for key, value in
                                                   measured.items()), ""] if measured else []  # fmt: skip
        lines += [f"- {remark}" for remark in report.get("remarks", ())]
        lines += [""] if report.get("remarks") else []
    lines += [
        "## Intended use", "", card.intended_use, "", "## Limits", "", card.limits, "", "## Licences", "",
        f"- code of the base: {card.licence_code.spdx}",
        f"- weights of the base, which these derive from: {card.licence_weights.spdx}"
        + (f" ({card.licence_weights.note})" if card.licence_weights.note else ""),
        "- what this package adds: see LICENSE, and change it where the weights or the data ask for another", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _notes(card: Any, made: tuple[Path, ...]) -> list[str]:
    found = []
    if not card.licence_weights.commercial:
        refused = card.licence_weights.commercial is False
        asks = "not for commercial use" if refused else "which says nothing of commercial use"
        found.append(
            f"the base's weights are under {card.licence_weights.spdx}, {asks}: so are these; "
            "put their licence into LICENSE before you give the package away"
        )
    size = sum(path.stat().st_size for path in made)
    if size > _INDEX_LIMIT:
        found.append(f"the package has {size / 1e6:.0f} MB, the public index takes 100 MB a file without asking")
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace('"', "'")


def _toml(tables: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(tables)


_HOOK = '''"""{title}, a model of omlab."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.cards import ModelCard
    from omlab.model import Model


@hookimpl
def omlab_model(card: ModelCard) -> Model:
    from omlab.api import directory_model

    return directory_model(Path(__file__).parent / "model")
'''
