"""``omlab run``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from omlab.cli.main import registry_of
from omlab.cli.options import (
    CardCommand,
    card_options,
    engine_options,
    fetch_options,
    find_model_card,
    grant_of,
    prompt_options,
    prompts_of,
)
from omlab.vocabulary import FORMATS


@click.command("run", cls=partial(CardCommand, card_of=find_model_card, more=prompt_options))  # type: ignore[arg-type]
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the results. [MODEL-results]")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="Format of the result, several allowed. [that of the input]",
)
@click.option("--picture/--no-picture", default=True, help="Draw overview.png.")
@click.option("--resume", is_flag=True, help="Skip cases that are whole already.")
@click.option(
    "--frame", type=click.IntRange(0), help="Which volume of a 4D file, or frame of a multi-frame one, from 0."
)
@click.option("--series", help="Which series (UID) of a DICOM folder.")
@click.option(
    "--nonfinite",
    type=click.Choice(["error", "keep", "zero"]),
    default="error",
    help="What to do with NaN and infinite voxels. [error]",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable rows on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@engine_options
@fetch_options
@click.pass_context
def command(
    context: click.Context,
    model: str,
    inputs: tuple[Path, ...],
    out: Path | None,
    formats: tuple[str, ...],
    picture: bool,
    resume: bool,
    frame: int | None,
    series: str | None,
    nonfinite: str,
    as_json: bool,
    quiet: bool,
    variant: str | None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
    **others: Any,
) -> int:
    """Run MODEL on INPUTS: files, folders, globs, DICOM series.

    MODEL is a name (omlab list) or a model directory. Every case gets a folder with the result on the input's own
    grid, a picture and result.json. `omlab run MODEL --help` also shows the model's own options.
    """
    prompts = prompts_of(model, context.meta.get("omlab.card"), others)
    from omlab.api import load
    from omlab.cli.listen import TerminalListener
    from omlab.running import run

    listener = TerminalListener(quiet=quiet or as_json)
    loaded = load(
        model, variant=variant, engine=engine, precision=precision, device=device, threads=threads,
        grant=grant_of(fetch, accept_licence), registry=registry_of(context), listener=listener,
    )  # fmt: skip
    target = out or Path(f"{Path(model).name}-results")
    reading = (
        {"nonfinite": nonfinite}
        | ({"frame": frame} if frame is not None else {})
        | ({"series": series} if series else {})
    )
    rows = []
    for row in run(
        loaded, inputs, target, formats=formats or None, picture=picture, resume=resume, reading=reading,
        options=card_options(others), prompts=prompts, listener=listener,
    ):  # fmt: skip
        listener.clear()
        rows.append(row)
        if not as_json:
            _tell(row)
        if row.error is not None and "--debug" in _arguments():
            import traceback

            traceback.print_exception(row.error)
    failed = sum(row.status == "failed" for row in rows)
    if as_json:
        click.echo(json.dumps({"out": str(target), "cases": [row.as_json() for row in rows]}, indent=2))
    elif len(rows) > 1:
        done = sum(row.status == "done" for row in rows)
        skipped = sum(row.status == "skipped" for row in rows)
        click.echo(f"{done} done, {skipped} skipped, {failed} failed; results in {target}")
    return 1 if failed else 0


def _arguments() -> list[str]:
    import sys

    return sys.argv


def _tell(row: Any) -> None:
    from omlab.cli.text import seconds

    if row.status == "failed":
        remedy = f". {row.remedy}" if row.remedy else ""
        click.echo(click.style("failed ", fg="red") + f"{row.name}: {row.cause}{remedy}", err=True)
        return
    note = "was done already" if row.status == "skipped" else seconds(row.seconds)
    click.echo(click.style(f"{row.status}   "[:7], fg="green") + f"{row.name}: {row.headline} ({note}) -> {row.folder}")
    for warning in row.warnings:
        click.echo(click.style("  note ", fg="yellow") + warning, err=True)
