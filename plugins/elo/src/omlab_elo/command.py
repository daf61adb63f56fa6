"""``omlab elo draw`` and ``omlab elo judge``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from omlab.errors import InputError, OutputError, UsageError


@click.group("elo")
def command() -> None:
    """Tournaments of language models: draw battles, let a judge decide them, then `omlab score elo`."""


@command.command("draw")
@click.argument("answers", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File of battles to write.")
@click.option("--model", "models", multiple=True, help="Models in the order of the draw. [the files, by name]")
@click.option("--each", type=click.IntRange(1), default=10, show_default=True, help="Battles of every pair.")
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of the draw.")
def draw_(answers: Path, out: Path, models: tuple[str, ...], each: int, seed: int) -> None:
    """Draw battles between the answers in the folder ANSWERS, one file MODEL.jsonl a model."""
    from omlab.files import write_text
    from omlab_elo.drawing import draw, read_answers

    names, questions = read_answers(answers, models or None)
    given = {model: [question["answers"][model] for question in questions] for model in names}
    drawn = draw(names, given, each=each, seed=seed)
    lines = [
        json.dumps(
            {
                "i": number, "q": battle.question, "model_a": battle.model_a, "model_b": battle.model_b,
                "question": questions[battle.question]["question"],
                "reference_answer": questions[battle.question]["reference_answer"],
                "model_a_predict_answer": given[battle.model_a][battle.question],
                "model_b_predict_answer": given[battle.model_b][battle.question],
            },
            ensure_ascii=False,
        )
        for number, battle in enumerate(drawn)
    ]  # fmt: skip
    try:
        write_text(out, "\n".join(lines) + "\n")
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(f"{len(drawn)} battles of {len(names)} models -> {out}")


@command.command("judge")
@click.argument("battles", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File of verdicts to write.")
@click.option("--endpoint", help="OpenAI-compatible server, say http://localhost:8000/v1.")
@click.option("--model", help="Name of the judge at the endpoint.")
@click.option("--key-from", default="OPENAI_API_KEY", show_default=True, help="Environment variable with the key.")
@click.option("--local", "local_model", help="A language model of omlab as the judge, in place of an endpoint.")
@click.option("--reference/--no-reference", default=True, help="Show the judge reference answers where there are some.")
def judge_(
    battles: Path,
    out: Path,
    endpoint: str | None,
    model: str | None,
    key_from: str,
    local_model: str | None,
    reference: bool,
) -> None:
    """Let a judge decide the battles of a file of `omlab elo draw`. Verdicts that OUT has already are kept."""
    from omlab_elo import judge
    from omlab_elo.verdicts import scores_of, winner_of

    if bool(endpoint) == bool(local_model) or (endpoint and not model):
        raise UsageError("name one judge", remedy="--endpoint URL --model NAME, or --local MODEL")
    if endpoint:
        asked = judge.server(endpoint, str(model), key=os.environ.get(key_from, ""))
    else:
        import omlab

        asked = judge.local(omlab.load(str(local_model)))
    done = _done(out)
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "a", encoding="utf-8") as file:
            for place, row in _rows(battles):
                if row["i"] in done:
                    continue
                said = judge.messages(
                    row["question"], row["model_a_predict_answer"], row["model_b_predict_answer"],
                    row.get("reference_answer", "") if reference else "",
                )  # fmt: skip
                text = asked(said)
                verdict = {key: row[key] for key in ("i", "q", "model_a", "model_b") if key in row}
                verdict |= {"judge": text, "winner": winner_of(scores_of(text))}
                file.write(json.dumps(verdict, ensure_ascii=False) + "\n")
                file.flush()  # an interrupt loses nothing that was paid for
                count += 1
                click.echo(f"{place}: {verdict['winner']}", err=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(f"{count} judged, {len(done)} were there already -> {out}")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from omlab_elo.battles import lines_of

    needed = ("i", "model_a", "model_b", "question", "model_a_predict_answer", "model_b_predict_answer")
    for number, row in lines_of(path):
        lacking = next((key for key in needed if key not in row), None)
        if lacking:
            raise InputError(f"{path.name}, line {number}: has no '{lacking}'", remedy="Make it with: omlab elo draw")
        yield f"battle {row['i']}", row


def _done(out: Path) -> set[Any]:
    """Ids that the file has verdicts of. A last line that a crash cut off is taken away: its battle is judged again."""
    from omlab_elo.battles import lines_of

    if not out.is_file():
        return set()
    content = out.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(out, "rb+") as file:
            file.truncate(whole)
    return {row.get("i") for _, row in lines_of(out)}
