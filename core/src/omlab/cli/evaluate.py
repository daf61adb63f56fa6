"""``omlab evaluate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from omlab.cli.main import registry_of
from omlab.cli.options import (
    CardCommand,
    card_options,
    click_option,
    engine_options,
    fetch_options,
    find_evaluator_card,
    find_model_card,
    grant_of,
    value_of,
)

#: Prefix of the evaluator's options in the parameters, which keeps them apart from the model's.
_SCORING = "evaluator_option_"


class _EvaluateCommand(CardCommand):
    """Takes the options of the evaluator that ``--with`` names, beside those of the model."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = value_of(args, "--with")
        ctx.meta["omlab.evaluator"] = find_evaluator_card(ctx, named) if named else None
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        card = ctx.meta.get("omlab.evaluator")
        taken = {opt for param in params for opt in param.opts}
        for option in card.options if card is not None else ():
            name = option.name.replace("_", "-")
            params.append(click_option(option, _SCORING, f"{card.name}-{name}" if f"--{name}" in taken else name))
        return params


@click.command("evaluate", cls=partial(_EvaluateCommand, card_of=find_model_card))  # type: ignore[arg-type]
@click.argument("model")
@click.option("--on", "dataset", required=True, help="Dataset, or DATASET:PATH for your own folder.")
@click.option("--with", "evaluator", help="Evaluator. [the one that fits the model's task]")
@click.option("--split", help="Split of the dataset. [test, where there is one]")
@click.option("--limit", type=click.IntRange(1), help="Only the first cases.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="FILE.json: also write the report there. A folder: keep the answers too, so that --resume can go on.",
)
@click.option("--resume", is_flag=True, help="Take the answers that the folder of -o holds already.")
@click.option("--part", metavar="I/N", help="Only every N-th case, from the I-th on, counted from 0.")
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
    resume: bool,
    part: str | None,
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
    """Run MODEL on every case of a dataset and score the answers against the references.

    With -o FOLDER the answers are kept as they come; after an interrupt the same command with --resume goes on.

    `omlab evaluate MODEL --with EVALUATOR --help` also shows the options of both. An option of the evaluator that the
    command or the model has too carries the evaluator's name in front: --elo-seed.
    """
    from omlab.api import load, load_dataset
    from omlab.cli.dataset import part_of
    from omlab.cli.listen import TerminalListener
    from omlab.cli.score import show
    from omlab.evaluating import evaluate

    listener = TerminalListener(quiet=as_json)
    grant = grant_of(fetch, accept_licence)
    registry = registry_of(context)
    folder = out if out is not None and out.suffix.lower() != ".json" else None
    bound = load_dataset(dataset, split=split, part=part_of(part), grant=grant, registry=registry, listener=listener)
    loaded = load(
        model, variant=variant, engine=engine, precision=precision, device=device, threads=threads,
        grant=grant, registry=registry, listener=listener,
    )  # fmt: skip
    try:
        evaluation = evaluate(
            loaded, bound, evaluator, limit=limit, options=card_options(others),
            evaluator_options=card_options(others, _SCORING), folder=folder, resume=resume, registry=registry,
            listener=listener,
        )  # fmt: skip
    except KeyboardInterrupt:
        listener.clear()
        if folder is not None:
            click.echo(f"the answers so far are kept in {folder}; go on with --resume", err=True)
        raise
    listener.clear()
    if evaluation.resumed and not as_json:
        click.echo(f"{evaluation.resumed} answers were there already", err=True)
    show(evaluation.report, folder / "report.json" if folder is not None else out, as_json)
    for failure in evaluation.failures:
        click.echo(
            click.style("failed ", fg="red")
            + f"{failure.name}: {failure.cause}"
            + (f". {failure.remedy}" if failure.remedy else ""),
            err=True,
        )
    return 1 if evaluation.failures else 0
