"""``omlab engines``."""

from __future__ import annotations

import json

import click


@click.command("engines")
@click.option("--model", help="Only engines of this model.")
@click.option("--clear", is_flag=True, help="Remove them; they are rebuilt when needed.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(model: str | None, clear: bool, as_json: bool) -> None:
    """List the engines that were built here, or remove them."""
    from omlab.cli.text import size, table
    from omlab.engines import store
    from omlab.settings import Settings

    root = Settings.from_environment().engines_root
    if clear:
        freed = store.clear(root, model=model)
        click.echo(json.dumps({"freed_bytes": freed}) if as_json else f"freed {size(freed)}")
        return
    entries = [entry for entry in store.entries(root) if model in (None, entry.model)]
    if as_json:
        click.echo(json.dumps([entry.as_json() for entry in entries], indent=2))
    elif not entries:
        click.echo("no engine was built here yet")
    else:
        rows = [[e.model, e.variant, e.graph, e.backend, e.precision, e.device, size(e.size)] for e in entries]
        click.echo(table(["model", "variant", "graph", "engine", "precision", "device", "size"], rows))
