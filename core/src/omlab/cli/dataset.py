"""``omlab dataset list | show | fetch | verify``."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from typing import Any

import click

from omlab.cards import DatasetCard, as_table
from omlab.cli.main import registry_of
from omlab.cli.options import fetch_options, grant_of
from omlab.errors import OutputError, UsageError
from omlab.vocabulary import Kind, Modality, Task

_JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
#: Problems of a kind that a terminal gets.
_SHOWN = 10
_HELP = """NAME is a dataset, NAME:PATH one in a folder of yours; options stand between: NAME,OPTION=VALUE:PATH."""


@click.group("dataset")
def command() -> None:
    """List, show, fetch and verify datasets."""


@command.command("list")
@click.option("--modality", type=click.Choice([m.value for m in Modality]), help="Only this modality.")
@click.option("--task", type=click.Choice([t.value for t in Task]), help="Only this task.")
@_JSON
@click.pass_context
def list_command(context: click.Context, modality: str | None, task: str | None, as_json: bool) -> None:
    """List the datasets, their licences, and whether they are here."""
    from omlab.cli.text import table
    from omlab.settings import Settings
    from omlab.weights.state import state_of

    settings = Settings.from_environment()
    rows = []
    for card in registry_of(context).cards(Kind.DATASET).values():
        if modality and not {modality, Modality.ANY.value} & set(card.modality):
            continue
        if task and task not in card.task:
            continue
        rows.append(
            {
                "name": card.name, "task": list(card.task), "modality": list(card.modality), "cases": card.cases,
                "licence": card.licence.spdx, "commercial": card.licence.commercial,
                "obtained": state_of(card, settings), "plugin": card.plugin, "summary": card.summary,
            }
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    cells = [
        [r["name"], ", ".join(r["task"]), ", ".join(r["modality"][:3]) + (" ..." if len(r["modality"]) > 3 else ""),
         f"{r['cases']:,}" if r["cases"] else "", r["licence"], r["obtained"], r["summary"]]
        for r in rows
    ]  # fmt: skip
    click.echo(table(["dataset", "task", "modality", "cases", "licence", "files", "what"], cells))


def _bound_options(function: Any) -> Any:
    """``--split --part`` and what fetching needs."""

    @click.option("--split", help="Only this split.")
    @click.option("--part", metavar="I/N", help="Only every N-th case, from the I-th on, counted from 0.")
    @fetch_options
    @_JSON
    @click.pass_context
    @wraps(function)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return decorated


@command.command("show", epilog=_HELP)
@click.argument("name")
@click.option("--sample", type=click.IntRange(0), default=24, help="Cases to read for figures and pictures. [24]")
@click.option("--seed", type=int, default=0, help="Which cases are drawn. [0]")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for the page, the contact sheet and the figures."
)
@_bound_options
def show_command(
    context: click.Context,
    name: str,
    sample: int,
    seed: int,
    out: Path | None,
    split: str | None,
    part: str | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show the card of a dataset; where its files are here, its figures and, with -o, a page with pictures."""
    from omlab.datasets import find_place, gather, parse, steps
    from omlab.settings import Settings
    from omlab.weights.state import state_of

    settings = Settings.from_environment()
    registry = registry_of(context)
    named = parse(name)
    card: DatasetCard = registry.card(Kind.DATASET, named.name)
    state = "here" if named.path else state_of(card, settings)
    here = bool(named.path) or fetch or state in ("here", "none") or find_place(card, settings) is not None
    record: dict[str, Any] = {"card": as_table(card), "obtained": state, "obtain": steps(card, settings)}
    if not as_json:
        _card(card, state, record["obtain"])
    if not here:
        if out is not None:
            raise UsageError(f"dataset '{card.name}' is not here, so there is nothing to draw", remedy=_how(card))
        if as_json:
            click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        elif card.obtain or card.files:
            click.echo(f"\nnot here: {_how(card)}")
        return
    bound, listener = _bound(context, name, split, part, fetch, accept_licence, as_json)
    statistics, read = gather(bound, sample=sample, seed=seed, listener=listener)
    listener.clear()
    record |= {"dataset": bound.name, "statistics": statistics.as_json()}
    if out is not None:
        record["files"] = _write(card, bound.name, record, statistics, read, out)
    if as_json:
        from omlab.report import jsonable

        click.echo(json.dumps(jsonable(record), indent=2, ensure_ascii=False))
        return
    _figures(statistics)
    for case, cause in statistics.failed.items():
        click.echo(click.style("  note ", fg="yellow") + f"{case}: {cause}", err=True)
    for file in record.get("files", {}).values():
        click.echo(f"wrote {file}")


@command.command("fetch", epilog="A dataset that has to be obtained by hand is told step by step; the exit code is 1.")
@click.argument("name")
@click.option("--accept-licence", multiple=True, metavar="SPDX", help="Accept this licence of the dataset.")
@_JSON
@click.pass_context
def fetch_command(context: click.Context, name: str, accept_licence: tuple[str, ...], as_json: bool) -> int:
    """Fetch the files of a dataset, or tell how to obtain it."""
    from omlab.api import pull
    from omlab.cli.listen import TerminalListener
    from omlab.cli.text import size
    from omlab.datasets import find_place, steps
    from omlab.settings import Settings

    settings = Settings.from_environment()
    registry = registry_of(context)
    card: DatasetCard = registry.card(Kind.DATASET, name)
    place = find_place(card, settings) if card.takes_path else None
    if place is not None:
        _say(as_json, {"dataset": name, "root": str(place), "files": {}}, [f"{name} is here: {place}"])
        return 0
    if card.files:
        listener = TerminalListener(quiet=as_json)
        paths = pull(name, grant=grant_of(True, accept_licence), registry=registry, listener=listener)
        listener.clear()
        lines = [f"{key}: {path} ({size(path.stat().st_size)})" for key, path in paths.items()]
        _say(as_json, {"dataset": name, "files": {k: str(p) for k, p in paths.items()}}, lines)
        return 0
    by_hand = steps(card, settings)
    if not by_hand:
        _say(
            as_json,
            {"dataset": name, "files": {}},
            [f"{name} reads a folder of your own: {name}:PATH. Nothing to fetch"],
        )
        return 0
    record = {"dataset": name, "files": None, "licence": as_table(card.licence), "by_hand": by_hand}
    licence = f"{card.licence.spdx}" + (f" ({card.licence.url})" if card.licence.url else "")
    lines = [f"{name} has to be obtained by hand. Licence: {licence}"]
    if card.licence.note:
        lines.append(f"  {card.licence.note}")
    _say(as_json, record, lines + [f"  {number}. {step}" for number, step in enumerate(by_hand, 1)])
    return 1


@command.command("verify", epilog=_HELP)
@click.argument("name")
@click.option("--read", type=click.IntRange(0), metavar="N", help="Read only N cases; 0 for none. [all]")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Also write what was found to this JSON file.")
@_bound_options
def verify_command(
    context: click.Context,
    name: str,
    read: int | None,
    out: Path | None,
    split: str | None,
    part: str | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
    as_json: bool,
) -> int:
    """Check that a dataset on disk is whole: layout, files, references and their grids, splits, counts.

    The exit code is 1 if something is wrong; remarks alone leave it at 0.
    """
    from omlab.datasets import verify
    from omlab.settings import Settings

    bound, listener = _bound(context, name, split, part, fetch, accept_licence, as_json)
    found = verify(bound, Settings.from_environment(), read=read, listener=listener)
    listener.clear()
    if out is not None:
        from omlab.files import write_text

        try:
            write_text(out, json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
        return 0 if found.whole else 1
    _problems(found)
    return 0 if found.whole else 1


def _problems(found: Any) -> None:
    from omlab.cli.text import seconds

    # Lines and no table: a path that is cut where the terminal ends helps nobody.
    width = max((len(problem.kind) for problem in found.problems), default=0)
    listed: dict[str, int] = {}
    for problem in found.problems:
        listed[problem.kind] = listed.get(problem.kind, 0) + 1
        if listed[problem.kind] > _SHOWN:
            continue
        word = click.style("error ", fg="red") if problem.error else click.style("remark", fg="yellow")
        where = problem.where.removeprefix(f"{found.root}/") if found.root else problem.where
        click.echo(f"  {word}  {problem.kind.ljust(width)}  {where}: {problem.what}")
    for kind, count in found.totals.items():
        if count > _SHOWN:
            click.echo(f"  and {count - _SHOWN:,} more of kind '{kind}'")
    cases = ", ".join(f"{split} {count:,}" for split, count in found.cases.items()) or "no case"
    verdict = click.style("whole", fg="green") if found.whole else click.style("not whole", fg="red")
    click.echo(f"{found.dataset}: {verdict}; {cases}; {found.read:,} read in {seconds(found.seconds)}")


def _bound(
    context: click.Context, name: str, split: str | None, part: str | None, fetch: bool, accept: tuple[str, ...],
    quiet: bool,
) -> Any:  # fmt: skip
    from omlab.api import load_dataset
    from omlab.cli.listen import TerminalListener

    listener = TerminalListener(quiet=quiet)
    bound = load_dataset(
        name, split=split, part=part_of(part), grant=grant_of(fetch, accept), registry=registry_of(context),
        listener=listener,
    )  # fmt: skip
    return bound, listener


def part_of(text: str | None) -> tuple[int, int] | None:
    """``"1/4"`` as (1, 4). Raises :class:`omlab.errors.UsageError`."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not index.isdigit() or not count.isdigit():
        raise UsageError(f"--part {text}: expected I/N, say 0/4")
    return int(index), int(count)


def _say(as_json: bool, record: dict[str, Any], lines: list[str]) -> None:
    click.echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def _how(card: DatasetCard) -> str:
    return f"omlab dataset fetch {card.name}" + (" tells how to obtain it" if not card.files else "")


def _card(card: DatasetCard, state: str, by_hand: list[str]) -> None:
    from omlab.datasets.sheet import facts

    click.secho(card.name, bold=True, nl=False)
    click.echo(f"  dataset, {card.plugin} {card.version}, files {state}")
    click.echo(f"{card.title or card.name}\n{card.summary}\n")
    for key, text in facts(card).items():
        click.echo(f"{key:16} {text}")
    if card.options:
        click.echo("\noptions")
        for option in card.options:
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            click.echo(f"  {option.name} {option.type}{choices}  {option.help}")
    if by_hand:
        click.echo("\nhow to obtain it")
        for number, step in enumerate(by_hand, 1):
            click.echo(f"  {number}. {step}")


def _figures(statistics: Any) -> None:
    from omlab.cli.text import table
    from omlab.datasets.sheet import shown, tables

    for heading, rows in tables(statistics).items():
        if not rows:
            continue
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        click.echo(f"\n{heading}")
        cells = [[str(name), *(shown(row.get(column, "")) for column in columns)] for name, row in rows.items()]
        click.echo(table(["", *columns], cells))


def _write(
    card: DatasetCard, name: str, record: dict[str, Any], statistics: Any, read: Any, out: Path
) -> dict[str, str]:
    from omlab.datasets.sheet import contact_sheet, page
    from omlab.files import whole, write_text
    from omlab.report import jsonable
    from omlab.running import prepare_folder

    prepare_folder(out)
    note = f"{name}: {sum(statistics.splits.values()):,} cases, {statistics.sampled} drawn"
    sheet = contact_sheet(read, title=card.title or card.name, note=note)
    files = {}
    try:
        if sheet is not None:
            with whole(out / "cases.png") as temporary:
                sheet.save(temporary, format="PNG", compress_level=6)
            files["picture"] = str(out / "cases.png")
        write_text(out / "dataset.html", page(card, statistics, record["obtain"], sheet, name))
        write_text(out / "dataset.json", json.dumps(jsonable(record), indent=2, ensure_ascii=False))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}", remedy="Name another folder with -o") from None
    return files | {"page": str(out / "dataset.html"), "figures": str(out / "dataset.json")}
