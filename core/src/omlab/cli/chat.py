"""``omlab chat``."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from omlab.cli.main import registry_of
from omlab.cli.options import CardCommand, card_options, engine_options, fetch_options, find_model_card, grant_of

if TYPE_CHECKING:
    from omlab.cases import Message
    from omlab.loading import LoadedModel


@click.command("chat", cls=partial(CardCommand, card_of=find_model_card))  # type: ignore[arg-type]
@click.argument("model")
@click.option("--stats", is_flag=True, help="Show tokens and speed after every answer.")
@engine_options
@fetch_options
@click.pass_context
def command(
    context: click.Context,
    model: str,
    stats: bool,
    variant: str | None,
    engine: str,
    precision: str,
    device: str,
    threads: int | None,
    fetch: bool,
    accept_licence: tuple[str, ...],
    **others: Any,
) -> int:
    """Talk with MODEL, a language model, in the terminal.

    Every line is a question; the model remembers what was said. `clear` begins a new conversation, `stop` or Ctrl-D
    ends; Ctrl-C stops an answer. `omlab chat MODEL --help` also shows the model's own options.
    """
    from omlab.api import load
    from omlab.cli.listen import TerminalListener
    from omlab.errors import UsageError
    from omlab.vocabulary import InputKind, OutputKind

    listener = TerminalListener(quiet=not sys.stderr.isatty())
    loaded = load(
        model, variant=variant, engine=engine, precision=precision, device=device, threads=threads,
        grant=grant_of(fetch, accept_licence), registry=registry_of(context), listener=listener,
    )  # fmt: skip
    if OutputKind.GENERATION not in loaded.card.outputs or InputKind.TEXT not in loaded.card.inputs:
        raise UsageError(
            f"'{model}' is no language model: it gives {' or '.join(loaded.card.outputs)}",
            remedy="omlab list models --task generation",
        )
    options = loaded.options(card_options(others))
    loaded.asked(None, options)
    loaded.engines.warm_up()  # while the first question is typed
    _converse(loaded, options, listener, stats)
    return 0


def _converse(loaded: LoadedModel, options: dict[str, Any], listener: Any, stats: bool) -> None:
    from omlab.cases import Message
    from omlab.errors import OmlabError

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        click.echo(f"{loaded.card.title or loaded.card.name}. clear: begin anew; stop or Ctrl-D: end\n")
    talk: list[Message] = []
    while True:
        question = _question(terminal)
        if question is None or question == "stop":
            return
        if question == "clear":
            talk.clear()
            if terminal:
                click.clear()
            continue
        if not question:
            continue
        turns = [*talk, Message(role="user", content=question)]
        try:
            answer = _answer(loaded, turns, options, listener, stats)
        except OmlabError as error:
            # The conversation goes on without this question.
            click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
            continue
        if answer is not None:
            talk = [*turns, Message(role="assistant", content=answer)]


def _question(terminal: bool) -> str | None:
    """The next line without white space around it; ``None`` at the end of the input."""
    try:
        if terminal:
            import contextlib

            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  line editing and history, where the system has it
            typed = input(click.style("> ", bold=True))
            typed.encode("utf-8")  # a terminal that is told no language hands bytes on as halves of characters
            return typed.strip()
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8").strip() if line else None
    except UnicodeError as error:
        why = f": {error.reason}" if isinstance(error, UnicodeDecodeError) else ""
        click.echo(click.style("error: ", fg="red", bold=True) + f"the line is not UTF-8{why}", err=True)
        return ""
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None


def _answer(
    loaded: LoadedModel, turns: list[Message], options: dict[str, Any], listener: Any, stats: bool
) -> str | None:
    """Write the answer as it comes; what was written of it, or ``None`` where there was nothing to keep."""
    from omlab.cases import Text

    pieces = loaded.stream(Text(name="chat", messages=turns), options=options, listener=_only_builds(listener))
    written: list[str] = []
    try:
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                result: Any = end.value
                break
            if not written:
                listener.clear()
            written.append(piece)
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        pieces.close()
        click.echo(click.style(" [stopped]", dim=True))
        return "".join(written).strip() or None
    click.echo()
    for note in result.notes:
        click.echo(click.style(f"[{note}]", dim=True), err=True)
    if result.finish_reason == "length":
        click.echo(click.style(f"[cut after {result.completion_tokens} tokens]", dim=True), err=True)
    if stats:
        speed = result.measurements.get("tokens_per_second")
        rate = f", {speed:.0f} tokens a second" if speed else ""
        click.echo(
            click.style(f"[{result.prompt_tokens} tokens read, {result.completion_tokens} written{rate}]", dim=True),
            err=True,
        )
    return str(result.text)


def _only_builds(listener: Any) -> Any:
    """Progress of an answer is the answer itself; only what is made or fetched before it is told."""

    def tell(event: Any) -> None:
        if event.stage in ("build", "download"):
            listener(event)

    return tell
