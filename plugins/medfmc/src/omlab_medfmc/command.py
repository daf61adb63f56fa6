"""``omlab medfmc submit`` and ``omlab medfmc draw``."""

from __future__ import annotations

from pathlib import Path

import click

from omlab.errors import OutputError
from omlab_medfmc.sets import SETS

_SET = click.option(
    "--dataset", "name", type=click.Choice(list(SETS), case_sensitive=False), required=True, help="Which of the five."
)


@click.group("medfmc")
def command() -> None:
    """Few-shot lists and submission files of MedFMC; `omlab score medfmc` scores them."""


@command.command("submit")
@click.argument("scores", type=click.Path(path_type=Path))
@_SET
@click.option(
    "--images", type=click.Path(path_type=Path), required=True,
    help="List of the images in the order of the submission, with labels or without (test_WithoutLabel.txt).",
)  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="SET_N-shot_submission.csv to write.")
def submit(scores: Path, name: str, images: Path, out: Path) -> None:
    """Make a submission of SCORES, the cases.csv of `omlab run MODEL IMAGES -o FOLDER`."""
    from omlab_medfmc.lists import read_part
    from omlab_medfmc.submitting import read_scores, submission

    which = SETS[name]
    order = list(read_part(images, which))
    _write(out, submission(read_scores(scores, which), order, scores.name))
    click.echo(f"{len(order)} images -> {out}")


@command.command("draw")
@click.argument("labels", type=click.Path(path_type=Path))
@_SET
@click.option("--shots", type=click.IntRange(1), required=True, help="Images, patients or studies of each class.")
@click.option("--experiments", type=click.IntRange(1), default=5, show_default=True, help="How many lists.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the first list; the others count on.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the lists.")
def draw_(labels: Path, name: str, shots: int, experiments: int, seed: int, out: Path) -> None:
    """Draw few-shot training lists from the label file LABELS by upstream's rule, with a seed that upstream has not.

    Files are named as upstream's: SET_N-shot_train_expK.txt, lines as in LABELS.
    """
    from omlab_medfmc.fewshot import draw
    from omlab_medfmc.sets import line_of, read_labels

    which = SETS[name]
    known = read_labels(labels, which)
    for number in range(experiments):
        chosen = draw(name, known, shots, seed=seed + number)
        path = out / f"{name}_{shots}-shot_train_exp{number + 1}.txt"
        _write(path, "".join(f"{line_of(image, known[image], which)}\n" for image in chosen))
        click.echo(f"{len(chosen)} lines, {len(set(chosen))} images -> {path}")


def _write(path: Path, text: str) -> None:
    from omlab.files import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", remedy="Name another place with -o") from None
