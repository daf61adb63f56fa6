"""``omlab tune``."""

from __future__ import annotations

import json

import click

from omlab.cli.main import registry_of
from omlab.cli.options import engine_options, fetch_options, grant_of


@click.command("tune")
@click.argument("model")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Interleaved rounds of measuring. [5]")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@engine_options
@fetch_options
@click.pass_context
def command(
    context: click.Context,
    model: str,
    rounds: int,
    as_json: bool,
    variant: str | None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
) -> None:
    """Measure every engine that agrees with the reference on MODEL's own example input, and remember the fastest.

    From then on --engine auto takes it on this machine.
    """
    from omlab.api import load
    from omlab.cli.listen import TerminalListener
    from omlab.cli.text import table

    listener = TerminalListener(quiet=as_json)
    loaded = load(
        model, variant=variant, engine=engine, precision=precision, device=device, threads=threads,
        grant=grant_of(fetch, accept_licence), registry=registry_of(context), listener=listener,
    )  # fmt: skip
    graphs = {}
    for graph in loaded.graphs:
        graphs[graph.name] = loaded.tune(graph, rounds=rounds)
        listener.clear()
        if not as_json:
            click.secho(f"{loaded.card.name} / {graph.name}", bold=True)
            click.echo(
                table(["engine", "precision", "device", "median", "agreement"], [r.cells() for r in graphs[graph.name]])
            )
    if as_json:
        click.echo(json.dumps({name: [row.as_json() for row in rows] for name, rows in graphs.items()}, indent=2))
