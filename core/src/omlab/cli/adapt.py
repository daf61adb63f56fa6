"""``omlab adapt``."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from omlab.cards import Card
from omlab.cli.main import registry_of
from omlab.cli.options import CardCommand, card_options, engine_options, fetch_options, grant_of, value_of
from omlab.vocabulary import Kind


def _find_adapter_card(ctx: click.Context, token: str) -> Card | None:
    """Card of the adapter that any word of the line names; its options belong to this command."""
    from omlab.adapter import with_shared

    card = registry_of(ctx).cards(Kind.ADAPTER).get(token)
    return with_shared(card) if card is not None else None  # type: ignore[arg-type]


class _AdaptCommand(CardCommand):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # The adapter is the value of --with, not the first word.
        named = value_of(args, "--with")
        if named:
            ctx.meta["omlab.card"] = _find_adapter_card(ctx, named)
        return click.Command.parse_args(self, ctx, args)


@click.command("adapt", cls=partial(_AdaptCommand, card_of=_find_adapter_card))  # type: ignore[arg-type]
@click.argument("model")
@click.option("--with", "adapter", required=True, help="Adapter (omlab list adapters).")
@click.option("--on", "dataset", required=True, help="Dataset, or DATASET:PATH for your own folder.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Model directory to make.")
@click.option("--name", help="Name of the new model. [the directory's]")
@click.option("--resume", is_flag=True, help="Go on with what an interruption of this command left.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@engine_options
@fetch_options
@click.pass_context
def command(
    context: click.Context,
    model: str,
    adapter: str,
    dataset: str,
    out: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    variant: str | None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
    **others: Any,
) -> None:
    """Adapt MODEL to a dataset and make a model directory, which runs, exports and evaluates like any model.

    MODEL may be a model directory itself. --shots N learns from N cases of each class, drawn by --seed. After Ctrl-C
    the same command with --resume goes on and ends with the same model.

    What is tuned along the way (the epoch that is kept, the strength of a penalty) is chosen on the validation split.
    Where the dataset has none, a classifier holds back a fifth of the training cases of each class, whole patients,
    drawn by --seed, and the report says how many; a segmenter then measures an epoch on what it learnt from, and says
    so. Of --shots nothing is held back: the settings are used as they are. The test split is only measured on.

    `omlab adapt MODEL --with ADAPTER --help` also shows the options of adapters.
    """
    from omlab.adapting import adapt, interrupted
    from omlab.api import load, load_dataset
    from omlab.cli.listen import TerminalListener

    listener = TerminalListener(quiet=as_json)
    grant = grant_of(fetch, accept_licence)
    registry = registry_of(context)
    bound = load_dataset(dataset, grant=grant, registry=registry, listener=listener)
    loaded = load(
        model, variant=variant, engine=engine, precision=precision, device=device, threads=threads,
        grant=grant, registry=registry, listener=listener,
    )  # fmt: skip
    try:
        report = adapt(
            loaded, adapter, bound, out, name=name, options=card_options(others), resume=resume, registry=registry,
            listener=listener,
        )  # fmt: skip
    except KeyboardInterrupt:
        listener.clear()
        if interrupted(out):
            click.echo("interrupted: what was done is kept, the same command with --resume goes on", err=True)
        raise
    listener.clear()
    if int(os.environ.get("RANK", "0")):
        return  # of several processes on several devices the first one speaks
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for remark in report.get("remarks", ()):
        click.echo(f"note: {remark}", err=True)
    for key, value in report.items():
        if isinstance(value, int | float | str):
            click.echo(
                f"{key.replace('_', ' '):24} {value:.4g}"
                if isinstance(value, float)
                else f"{key.replace('_', ' '):24} {value}"
            )
    click.echo(f"made {out} with report.html; try: omlab run {out if '/' in str(out) else f'./{out}'} FILE")
