"""``omlab info``."""

from __future__ import annotations

import json
from typing import Any

import click

from omlab.cards import Asset, Card, ModelCard, as_table
from omlab.cli.main import registry_of
from omlab.errors import UnknownName
from omlab.vocabulary import Kind


@click.command("info")
@click.argument("name")
@click.option("--kind", type=click.Choice([k.value for k in Kind]), help="Where a name exists twice.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def command(context: click.Context, name: str, kind: str | None, as_json: bool) -> None:
    """Show the whole card of NAME: a model, dataset, adapter, evaluator, engine, or a folder of omlab adapt."""
    from omlab.api import directory_card, model_directory

    registry = registry_of(context)
    kinds = [Kind(kind)] if kind else [k for k in Kind if k is not Kind.COMMAND]
    found: list[tuple[Kind, Card]] = [(k, registry.cards(k)[name]) for k in kinds if name in registry.cards(k)]
    folder = None if found or Kind.MODEL not in kinds else model_directory(name)
    if folder:
        found = [(Kind.MODEL, directory_card(folder)[0])]
    if not found:
        _unknown(registry, name, kinds)
    for of_kind, card in found:
        if as_json:
            click.echo(json.dumps({"kind": of_kind.value, **as_table(card)}, indent=2, ensure_ascii=False))
        else:
            _print(of_kind, card)


def _unknown(registry: Any, name: str, kinds: list[Kind]) -> None:
    """An unknown name gets near names of every kind."""
    import difflib

    names = {n: k for k in kinds for n in registry.cards(k)}
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if near:
        hint = f"Did you mean: {', '.join(f'{n} ({names[n].value})' for n in near)}?"
        raise UnknownName(f"'{name}' is not known here", remedy=hint)
    registry.card(Kind.MODEL, name)


def _print(kind: Kind, card: Card) -> None:
    from omlab.settings import Settings
    from omlab.weights import state_of

    click.secho(f"{card.name}", bold=True, nl=False)
    click.echo(f"  {kind.value}" + (f", {card.plugin} {card.version}" if card.plugin else ""))
    if card.title:
        click.echo(card.title)
    click.echo(card.summary + "\n")
    skipped = {"name", "title", "summary", "plugin", "version", "variants", "files", "options", "labels", "reported"}
    for key, value in as_table(card).items():
        if key not in skipped:
            _field(key.replace("_", " "), value)
    settings = Settings.from_environment()
    state = state_of(card, settings)
    if state:
        _field("files", state)
    if isinstance(card, ModelCard):
        click.echo("\nvariants")
        for variant in card.variants:
            click.echo(f"  {variant.name}" + (f": {variant.title}" if variant.title else ""))
            for asset in variant.weights:
                click.echo(f"    {_asset(asset)}")
    for asset in getattr(card, "files", ()):
        click.echo(f"    {_asset(asset)}")
    labels = getattr(card, "labels", ())
    if labels:
        click.echo("\nlabels")
        click.echo("  " + ", ".join(f"{label.value} {label.name}" for label in labels))
    if card.options:
        click.echo("\noptions")
        for option in card.options:
            default = f" [{option.default}]" if option.default not in (None, "") else ""
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            click.echo(f"  --{option.name} {option.type}{choices}{default}  {option.help}")
    if isinstance(card, ModelCard) and card.reported:
        click.echo("\nreported by the authors, not measured by omlab")
        for reported in card.reported:
            bounds = f" ({reported.low} to {reported.high})" if reported.low is not None else ""
            click.echo(f"  {reported.metric} {reported.value}{bounds} on {reported.on} [{reported.source}]")


def _asset(asset: Asset) -> str:
    from omlab.cli.text import size
    from omlab.weights.fetch import describe

    what = " and the files that it names" if asset.index else f", {size(asset.size)}"
    return f"{asset.id}: {asset.filename}{what}, from {describe(asset)}"


def _field(name: str, value: Any) -> None:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v}" if k != "spdx" else str(v) for k, v in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    click.echo(f"{name:16} {value}")
