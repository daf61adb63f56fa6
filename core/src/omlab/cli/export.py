"""``omlab export``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from omlab.cli.main import registry_of
from omlab.cli.options import fetch_options, grant_of


@click.command("export")
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the files. [MODEL-onnx]")
@click.option("--variant", help="Variant of the model.")
@click.option("--precision", default="auto", help="Of language models, whose weights are rounded when written. [auto]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@fetch_options
@click.pass_context
def command(
    context: click.Context,
    model: str,
    out: Path | None,
    variant: str | None,
    precision: str,
    as_json: bool,
    fetch: bool,
    accept_licence: tuple[str, ...],
) -> None:
    """Write MODEL's graphs as ONNX files, with a description of their tensors."""
    from omlab.api import load
    from omlab.cli.listen import TerminalListener
    from omlab.exporting import export

    listener = TerminalListener(quiet=as_json)
    loaded = load(
        model, variant=variant, precision=precision, grant=grant_of(fetch, accept_licence),
        registry=registry_of(context), listener=listener,
    )  # fmt: skip
    target = out or Path(f"{Path(model).name}-onnx")
    files = export(loaded, target, listener=listener)
    listener.clear()
    if as_json:
        click.echo(json.dumps({name: str(path) for name, path in files.items()}, indent=2))
    else:
        for name, path in files.items():
            click.echo(f"{name}: {path}")
