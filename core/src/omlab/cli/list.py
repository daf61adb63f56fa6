"""``omlab list``."""

from __future__ import annotations

from typing import Any

import click

from omlab.cli.main import registry_of
from omlab.vocabulary import DIMENSIONS, InputKind, Kind, Modality, Task

KINDS = {
    "models": Kind.MODEL,
    "datasets": Kind.DATASET,
    "adapters": Kind.ADAPTER,
    "evaluators": Kind.EVALUATOR,
    "engines": Kind.ENGINE,
}


@click.command("list")
@click.argument("what", type=click.Choice([*KINDS, "all"]), default="all", metavar="[WHAT]")
@click.option("--modality", type=click.Choice([m.value for m in Modality]), help="Only this modality.")
@click.option("--task", type=click.Choice([t.value for t in Task]), help="Only this task.")
@click.option(
    "--input",
    "input_kind",
    type=click.Choice([*DIMENSIONS, *(k.value for k in InputKind)]),
    help="Only this kind of input.",
)
@click.option("--installed/--all", "local", default=False, help="Only what has its files here.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(
    context: click.Context,
    what: str,
    modality: str | None,
    task: str | None,
    input_kind: str | None,
    local: bool,
    as_json: bool,
) -> None:
    """List what the installed plugins contribute.

    WHAT is models, datasets, adapters, evaluators, engines or all (the default).
    """
    from omlab.listing import state_of_row
    from omlab.settings import Settings

    registry = registry_of(context)
    settings = Settings.from_environment()
    kinds = list(KINDS.values()) if what == "all" else [KINDS[what]]
    wanted_input = DIMENSIONS.get(input_kind, input_kind) if input_kind else None
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        for row in registry.rows(kind):
            if modality and not {modality, Modality.ANY.value} & set(row.get("modality", ())):
                continue
            if task and task not in row.get("task", ()):
                continue
            if wanted_input and wanted_input not in row.get("inputs", ()):
                continue
            state = state_of_row(row, settings)
            if local and state not in {"here", "part", ""}:
                continue
            rows.append({**row, "state": state})
    if as_json:
        import json

        from omlab.cards import as_table

        contributions = [
            {"kind": row["kind"], "files": row["state"], **as_table(registry.card(Kind(row["kind"]), row["name"]))}
            for row in rows
        ]
        click.echo(
            json.dumps({"contributions": contributions, "broken": [_broken(b) for b in registry.broken]}, indent=2)
        )
        return
    _print(rows, registry, filtered=bool(modality or task or input_kind or local))


def _broken(broken: Any) -> dict[str, str]:
    return {"plugin": broken.distribution, "version": broken.version, "reason": broken.reason, "remedy": broken.remedy}


def _print(rows: list[dict[str, Any]], registry: Any, *, filtered: bool) -> None:
    from omlab.cli.text import table

    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        click.secho(f"{kind}s", bold=True)
        if kind in (Kind.MODEL, Kind.DATASET):
            fields = ["name", "modality", "task", "inputs", "licence", "state"]
            head = ["name", "modality", "task", "input", "licence", "files" if kind == Kind.DATASET else "weights"]
        elif kind == Kind.ENGINE:
            fields = ["name", "precisions", "devices", "state"]
            head = ["name", "precisions", "devices", "library"]
        else:
            fields = ["name", "task", "summary"]
            head = ["name", "task", "what for"]
        cells = [[v if isinstance(v := row[field], str) else ", ".join(v) for field in fields] for row in of_kind]
        click.echo(table(head, cells))
    if not rows:
        click.echo("nothing here fits; leave out a filter" if filtered else "no plugin contributes any")
    if registry.broken:
        click.secho("broken plugins", bold=True, fg="red")
        for broken in registry.broken:
            click.echo(f"  {broken.distribution} {broken.version}: {broken.reason}. {broken.remedy}")


__all__ = ["command"]
