"""``omlab new``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["classifier", "segmenter-3d", "evaluator", "dataset"]),
    default="classifier",
    show_default=True,
    help="What the plugin contributes.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to make. [omlab-NAME]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(name: str, kind: str, out: Path | None, as_json: bool) -> None:
    """Make the folder of a new plugin called NAME, which passes `omlab check` as made."""
    from omlab_sdk.scaffold import create

    folder = out or Path(f"omlab-{name}")
    files = create(name, kind, folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": [str(f) for f in files]}, indent=2))
        return
    for file in files:
        click.echo(f"wrote {file}")
    click.echo(f"next: pip install -e {_shown(folder)} && omlab check {name}")


def _shown(folder: Path) -> str:
    """A path that pip does not take for the name of a package."""
    return str(folder) if folder.is_absolute() or folder.parts[:1] == ("..",) else f"./{folder}"
