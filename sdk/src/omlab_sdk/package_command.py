"""``omlab package``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("package")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the plugin and of its model. [that of the model]")
@click.option("--version", default="0.1.0", show_default=True, help="Version of the distribution.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder to make. [omlab-NAME]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(model: Path, name: str | None, version: str, out: Path | None, as_json: bool) -> None:
    """Make a plugin of the model directory MODEL (omlab adapt makes one), to be given to others.

    What is made is a folder that pip installs and builds into a wheel; the model runs by its name then.
    """
    from omlab_sdk.packaging import package

    made = package(model, name=name, version=version, out=out)
    if as_json:
        click.echo(json.dumps({"folder": str(made.folder), "name": made.name, "files": [str(f) for f in made.files]}))
        return
    for note in made.notes:
        click.echo(click.style("note ", fg="yellow") + note, err=True)
    shown = str(made.folder) if made.folder.is_absolute() else f"./{made.folder}"
    click.echo(f"made {made.folder}; next: pip install {shown} && omlab run {made.name} FILE")
