"""``omlab pull``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from omlab.cli.main import registry_of
from omlab.cli.options import grant_of
from omlab.errors import UsageError


@click.command("pull")
@click.argument("names", nargs=-1, required=True)
@click.option("--variant", help="Variant of a model; its first without one.")
@click.option("--file", "files", multiple=True, metavar="ID=PATH", help="A file that you fetched by hand.")
@click.option(
    "--cases", type=click.Path(path_type=Path), help="Also write a dataset's cases and references below this folder."
)
@click.option("--accept-licence", multiple=True, metavar="SPDX", help="Accept this licence.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(
    context: click.Context,
    names: tuple[str, ...],
    variant: str | None,
    files: tuple[str, ...],
    cases: Path | None,
    accept_licence: tuple[str, ...],
    as_json: bool,
) -> None:
    """Fetch the files of the models or datasets NAMES, verified; what is here already is not fetched again."""
    from omlab.api import load_dataset, pull
    from omlab.cli.listen import TerminalListener
    from omlab.cli.text import size
    from omlab.materialising import write_cases
    from omlab.weights import shards_of

    given = {}
    for text in files:
        key, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--file {text}: expected ID=PATH", remedy="omlab info NAME lists the ids")
        given[key] = Path(path)
    listener = TerminalListener(quiet=as_json)
    rows = {}
    for name in names:
        paths = pull(
            name, variant=variant, grant=grant_of(True, accept_licence), files=given,
            registry=registry_of(context), listener=listener,
        )  # fmt: skip
        listener.clear()
        rows[name] = {key: str(path) for key, path in paths.items()}
        if not as_json:
            if not paths:
                click.echo(f"{name} needs no files")
            for key, path in paths.items():
                for file in dict.fromkeys((path, *shards_of(path))):
                    click.echo(f"{name} {key}: {file} ({size(file.stat().st_size)})")
        if cases is not None:
            written = write_cases(load_dataset(name, registry=registry_of(context)), cases)
            rows[name] |= {key: str(path) for key, path in written.items()}
            if not as_json:
                for path in written.values():
                    click.echo(f"wrote {path}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
