"""``omlab pathoduet cut``."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import click

COLUMNS = ("slide", "source", "status", "regions", "patches", "cause", "settings")
TABLE = "slides.csv"


@click.group("pathoduet")
def command() -> None:
    """Pre-training data of PathoDuet."""


@command.command("cut")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
@click.option("--regions", type=click.IntRange(1), default=200, show_default=True, help="Regions of a slide, at most.")
@click.option("--patches", type=click.IntRange(0), default=9, show_default=True, help="Patches drawn in a region.")
@click.option("--level", type=click.IntRange(0), default=1, show_default=True, help="Level that regions are read from.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn.")
@click.option("--readers", type=click.IntRange(0), default=0, help="Threads that read a slide. [usable processors]")
@click.option("--resume", is_flag=True, help="Skip slides that slides.csv tells as done.")
def cut(
    slides: tuple[Path, ...], out: Path, regions: int, patches: int, level: int, seed: int, readers: int, resume: bool
) -> int:
    """Cut SLIDES (files, folders, globs) into the regions and patches that stages 1 and 2 learn from.

    Writes region/SLIDE_I.png (1024 pixels of the level, at 256), patch/SLIDE_I_J.png (256 pixels of level 0), and the
    table slides.csv. A slide that fails is a row of it, and the others go on.
    """
    from omlab.cases import find
    from omlab.errors import OmlabError
    from omlab.vocabulary import InputKind
    from omlab_pathoduet.cutting import Rules, write

    rules = Rules(regions=regions, patches=patches, level=level)
    settings = f"regions={regions} patches={patches} level={level} seed={seed}"
    rows = _begun(out / TABLE, settings, resume)
    done = failed = 0
    for item in find(slides, kinds=(InputKind.SLIDE,)):
        row: dict[str, Any] = {"slide": item.name, "source": str(item.path), "settings": settings}
        before = rows.get(item.name, {})
        if before.get("source") == row["source"] and before.get("status") == "done":
            done += 1
            continue
        try:
            slide = item.read(kind=InputKind.SLIDE)
            row |= {"status": "done", **write(slide, out, rules, name=item.name, seed=seed, readers=readers)}
            done += 1
            click.echo(f"{item.name}: {row['regions']} regions, {row['patches']} patches")
        except OmlabError as error:
            row |= {"status": "failed", "cause": error.message}
            failed += 1
            click.echo(f"failed {item.name}: {error}", err=True)
        rows[item.name] = row
        _tell(out / TABLE, rows)
    click.echo(f"{done} slides cut, {failed} failed -> {out}")
    return 1 if failed else 0


def _begun(table: Path, settings: str, resume: bool) -> dict[str, dict[str, Any]]:
    """Name of a slide -> row of what was cut before; pictures of other settings are not mixed with these."""
    from omlab.errors import UsageError

    if not table.is_file():
        return {}
    if not resume:
        raise UsageError(f"{table.parent} has slides that were cut before", remedy="Give --resume, or another folder")
    with open(table, newline="", encoding="utf-8") as file:
        rows = {row.get("slide") or "": dict(row) for row in csv.DictReader(file)}
    other = next((row.get("settings") for row in rows.values() if row.get("settings") != settings), settings)
    if other != settings:
        raise UsageError(f"{table} is of {other}, not of {settings}", remedy="Give the same options, or another folder")
    return rows


def _tell(table: Path, rows: dict[str, dict[str, Any]]) -> None:
    from omlab.errors import OutputError
    from omlab.files import write_text

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    try:
        write_text(table, text.getvalue())
    except OSError as error:
        raise OutputError(f"{table} cannot be written: {error.strerror}") from None
