"""Options of the command line that come from a card: known only once the name on the line is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from omlab.cards import Card, Option
from omlab.cli.main import registry_of
from omlab.errors import UsageError
from omlab.vocabulary import Kind, Prompt

#: Prefix that keeps a card's options apart from the command's own in the parameters that click hands over.
PREFIX = "card_option_"
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "path": click.Path(path_type=Path)}


def click_option(option: Option, prefix: str = PREFIX, named: str = "") -> click.Option:
    """A card's option as click's; ``named`` where it cannot have its own name on the command line."""
    name = named or option.name.replace("_", "-")
    help_text = option.help + (f"  [{option.default}]" if option.default not in (None, "", False) else "")
    if option.type == "bool":
        return click.Option(
            [f"{prefix}{option.name.replace('-', '_')}", f"--{name}/--no-{name}"], default=None, help=help_text
        )
    kind = click.Choice(list(option.choices), case_sensitive=False) if option.choices else _TYPES[option.type]
    return click.Option(
        [f"{prefix}{option.name.replace('-', '_')}", f"--{name}"],
        type=kind, default=None, multiple=option.many, help=help_text,
    )  # fmt: skip


def value_of(args: Sequence[str], option: str) -> str | None:
    """What the words of a command line give for an option, before they are parsed; the last one counts."""
    found = None
    for number, word in enumerate(args):
        if word == "--":
            break
        if word == option and number + 1 < len(args):
            found = args[number + 1]
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


class CardCommand(click.Command):
    """A command whose first argument names a contribution and which then takes that contribution's options too."""

    def __init__(
        self,
        *args: Any,
        card_of: Callable[[click.Context, str], Card | None],
        more: Callable[[Card | None], list[click.Option]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._card_of, self._more = card_of, more

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        card = ctx.meta.get("omlab.card")
        if self._more is not None:
            params = [*params, *self._more(card)]
        if card is None:
            return params
        own = {opt for p in params for opt in p.opts}
        extra = [click_option(option) for option in card.options]
        return params + [option for option in extra if not own & set(option.opts[1:])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for token in args:
            if token == "--":
                break
            if not token.startswith("-"):
                card = self._card_of(ctx, token)
                if card is not None:
                    ctx.meta["omlab.card"] = card
                    break
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        return super().make_context(*args, **kwargs)


def card_options(values: dict[str, Any], prefix: str = PREFIX) -> dict[str, Any]:
    """The options that the user gave for the card, without those left at their default."""
    given = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return {key: value for key, value in given.items() if value is not None and value != ()}


#: Prompt options of ``omlab run``: name, kind that the model must take (any without), metavar, help.
_PROMPTS: tuple[tuple[str, Prompt | None, str, str], ...] = (
    ("point", Prompt.POINT, "X,Y[:0|1]", "A place that belongs to the object, in pixels; :0 for one that does not."),
    ("box", Prompt.BOX, "X0,Y0,X1,Y1", "A box around the object, in pixels, by two corners."),
    ("mask", Prompt.MASK, "FILE", "A rough mask of the object on the grid of the case."),
    ("text", Prompt.TEXT, "TEXT", "What the object is."),
    ("prompts", None, "FILE", "JSON with any number of named objects, also for single cases."),
)


def prompt_options(card: Card | None) -> list[click.Option]:
    """``--point --box --mask --text --prompts``; shown where the card takes them, and refused by :func:`prompts_of`
    where not."""
    takes = getattr(card, "prompts", ())
    options = []
    for name, kind, metavar, text in _PROMPTS:
        where = " Voxels i,j,k for a volume." if kind in (Prompt.POINT, Prompt.BOX) else ""
        several = "" if kind in (Prompt.MASK, Prompt.TEXT) else " Several allowed."
        options.append(
            click.Option(
                [f"prompt_{name}", f"--{name}"], multiple=True, metavar=metavar, help=text + where + several,
                hidden=not (kind in takes if kind else takes),
            )
        )  # fmt: skip
    return options


def prompts_of(model: str, card: Card | None, values: dict[str, Any]) -> Any:
    """Prompts that the user gave; ``None`` without any.

    Raises
    ------
    UsageError
        The model takes none, or none of this kind, or a value is not written as expected.
    InputError
        A file that is no prompt file.
    """
    given = {name: values.get(f"prompt_{name}") or () for name, _, _, _ in _PROMPTS}
    if not any(given.values()):
        return None
    from omlab.prompts import of_arguments

    takes = getattr(card, "prompts", ())
    for name, kind, _, _ in _PROMPTS:
        if given[name] and card is not None and not (kind in takes if kind else takes):
            known = ", ".join(f"--{n}" for n, k, _, _ in _PROMPTS if k in takes)
            raise UsageError(
                f"'{model}' takes no --{name}",
                remedy=f"It takes {known}" if known else "It takes no prompts: leave it out",
            )
    return of_arguments(
        given["point"], given["box"], [Path(p) for p in given["mask"]], [Path(p) for p in given["prompts"]],
        given["text"],
    )  # fmt: skip


def find_model_card(ctx: click.Context, token: str) -> Card | None:
    """Card of a model by name or directory; ``None`` if the word is neither."""
    from omlab.api import directory_card, model_directory
    from omlab.errors import OmlabError

    card = registry_of(ctx).cards(Kind.MODEL).get(token)
    if card is not None or not (Path(token) / "omlab.toml").is_file():
        return card
    try:
        folder = model_directory(token)
        return directory_card(folder)[0] if folder else None
    except OmlabError:
        return None  # told when the directory is loaded


def find_evaluator_card(ctx: click.Context, token: str) -> Card | None:
    """Card of an evaluator by name."""
    return registry_of(ctx).cards(Kind.EVALUATOR).get(token)


def find_dataset_card(ctx: click.Context, token: str) -> Card | None:
    """Card of a dataset by name."""
    return registry_of(ctx).cards(Kind.DATASET).get(token.partition(":")[0].partition(",")[0])


def engine_options(function: Any) -> Any:
    """``--variant --engine --precision --device --threads``, for every command that runs a model."""
    for decorate in (
        click.option("--threads", type=click.IntRange(1), help="Threads of the engine. [the usable processors]"),
        click.option("--device", default="auto", help="auto, cpu or cuda."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "float32", "bfloat16", "float16", "int8", "int4"]),
            default="auto",
            help="Arithmetic; auto takes the fastest that the parity gate admits.",
        ),
        click.option("--engine", default="auto", help="auto, or the name of an engine (omlab list engines)."),
        click.option("--variant", help="Variant of the model (omlab info MODEL)."),
    ):
        function = decorate(function)
    return function


def fetch_options(function: Any) -> Any:
    """``--pull`` and ``--accept-licence``."""
    for decorate in (
        click.option("--accept-licence", multiple=True, metavar="SPDX", help="Accept this licence of the weights."),
        click.option("--pull", "fetch", is_flag=True, help="Fetch missing files without asking."),
    ):
        function = decorate(function)
    return function


def grant_of(fetch: bool, accept_licence: tuple[str, ...]) -> Any:
    """What the user allows: asks on a terminal, and only there."""
    import sys

    from omlab.weights import Grant

    can_ask = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    return Grant(fetch, accept_licence, (lambda question: click.confirm(question, err=True)) if can_ask else None)
