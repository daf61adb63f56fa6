"""``omlab score``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from omlab.cli.main import registry_of
from omlab.cli.options import CardCommand, card_options, find_evaluator_card


@click.command("score", cls=partial(CardCommand, card_of=find_evaluator_card))  # type: ignore[arg-type]
@click.argument("evaluator")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Also write the report to this JSON file, a page (and picture) to read beside it.",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(
    context: click.Context, evaluator: str, files: tuple[Path, ...], out: Path | None, as_json: bool, **others: Any
) -> None:
    """Score FILES with EVALUATOR, say `omlab score segmentation PREDICTION REFERENCE`.

    `omlab score EVALUATOR --help` also shows the evaluator's own options.
    """
    from omlab.api import score
    from omlab.cli.listen import TerminalListener

    listener = TerminalListener(quiet=as_json)
    try:
        report = score(evaluator, files, options=card_options(others), registry=registry_of(context), listener=listener)
    finally:
        listener.clear()
    show(report, out, as_json)


def show(report: Any, out: Path | None, as_json: bool) -> None:
    """A report on the terminal and, if wanted, in a JSON file, with the page (and picture) to read beside it."""
    from omlab.cli.text import table

    if out is not None:
        from omlab.errors import OutputError
        from omlab.files import whole, write_text
        from omlab.page import html

        try:
            write_text(out, json.dumps(report.as_json(), indent=2, ensure_ascii=False))
            write_text(out.with_suffix(".html"), html(report))
            if report.illustration is not None:
                with whole(out.with_suffix(".png")) as temporary:
                    report.illustration(report.title or report.evaluator).save(temporary, format="PNG")
        except OSError as error:
            raise OutputError(
                f"{out} cannot be written: {error.strerror}", remedy="Name another file with -o"
            ) from None
    if as_json:
        click.echo(json.dumps(report.as_machine(), indent=2, ensure_ascii=False))
        return
    rows = []
    for name, value in report.summary.items():
        if value.value is None:
            rows.append([name, "undefined", value.undefined, str(value.n)])
            continue
        bounds = f"{value.low:.4g} to {value.high:.4g}" if value.low is not None and value.high is not None else ""
        rows.append([name, f"{value.value:.5g} {value.unit}".strip(), bounds, str(value.n)])
    if report.table:
        click.echo(table(list(report.table[0]), [list(row) for row in report.table[1:]]))
    else:
        click.echo(table(["metric", "value", "95 % interval", "cases"], rows))
    for warning in report.warnings:
        click.echo(click.style("  note ", fg="yellow") + warning, err=True)
