"""``omlab compare``."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import click


@click.command("compare")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--only", help="Only metrics that contain this text.")
@click.option("--rounds", type=click.IntRange(100), default=10_000, show_default=True, help="Bootstrap rounds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(
    context: click.Context, reports: tuple[Path, ...], only: str | None, rounds: int, seed: int, as_json: bool
) -> None:
    """Compare reports of one evaluator side by side, the last with the first.

    REPORTS are JSON files of `omlab score -o` or `omlab evaluate -o`. Where they have a metric for single cases, or the
    evaluator can take it again from them, the difference gets a 95 % interval by paired bootstrap over the cases that
    both have.
    """
    from omlab.cli.main import registry_of
    from omlab.cli.text import table
    from omlab.comparing import compare, read
    from omlab.vocabulary import Kind

    found = [read(path) for path in reports]
    registry, name = registry_of(context), str(found[0]["evaluator"])
    known = name in registry.cards(Kind.EVALUATOR)
    evaluator = registry.load(Kind.EVALUATOR, name) if known else None
    rows = compare(found, rounds=rounds, seed=seed, evaluator=evaluator)
    rows = [row for row in rows if not only or only in row.metric]
    if as_json:
        shown = [attrs.asdict(row) | {"verdict": row.verdict} for row in rows]
        click.echo(json.dumps({"reports": [str(path) for path in reports], "metrics": shown}, indent=2))
        return
    names = [path.stem for path in reports]
    names = names if len(set(names)) == len(names) else [str(path) for path in reports]
    cells = []
    for row in rows:
        values = ["undefined" if value is None else f"{value:.5g}" for value in row.values]
        gap = "" if row.difference is None else f"{row.difference:+.4g}"
        bounds = "" if row.low is None else f"{row.low:+.4g} to {row.high:+.4g}"
        cells.append([row.metric, *values, gap, bounds, str(row.cases or ""), row.verdict])
    click.echo(table(["metric", *names, "difference", "95 % interval", "cases", ""], cells))
