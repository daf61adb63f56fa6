"""``omlab evaluate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from omlab.cli.main import registry_of
from omlab.cli.options import CardCommand, card_options, engine_options, fetch_options, find_model_card, grant_of


@click.command("evaluate", cls=partial(CardCommand, card_of=find_model_card))  # type: ignore[arg-type]
@click.argument("model")
@click.option("--on", "dataset", required=True, help="Dataset, or DATASET:PATH for your own folder.")
@click.option("--with", "evaluator", help="Evaluator. [the one that fits the model's task]")
@click.option("--split", help="Split of the dataset. [test, where there is one]")
@click.option("--limit", type=click.IntRange(1), help="Only the first cases.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Also write the report to this JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@engine_options
@fetch_options
@click.pass_context
def command(
    context: click.Context,
    model: str,
    dataset: str,
    evaluator: str | None,
    split: str | None,
    limit: int | None,
    out: Path | None,
    as_json: bool,
    variant: str | None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
    **others: Any,
) -> int:
    """Run MODEL on every case of a dataset and score the answers against the references."""
    from omlab.api import load, load_dataset
    from omlab.cli.listen import TerminalListener
    from omlab.cli.score import show
    from omlab.evaluating import evaluate

    listener = TerminalListener(quiet=as_json)
    grant = grant_of(fetch, accept_licence)
    registry = registry_of(context)
    bound = load_dataset(dataset, split=split, grant=grant, registry=registry, listener=listener)
    loaded = load(
        model, variant=variant, engine=engine, precision=precision, device=device, threads=threads,
        grant=grant, registry=registry, listener=listener,
    )  # fmt: skip
    evaluation = evaluate(
        loaded, bound, evaluator, limit=limit, options=card_options(others), registry=registry, listener=listener
    )
    listener.clear()
    show(evaluation.report, out, as_json)
    for failure in evaluation.failures:
        click.echo(click.style("failed ", fg="red") + f"{failure.name}: {failure.cause}", err=True)
    return 1 if evaluation.failures else 0
