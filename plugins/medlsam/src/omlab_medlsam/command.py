"""``omlab medlsam CONFIG``: a configuration of upstream, step by step with omlab's own commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from omlab.errors import UsageError

if TYPE_CHECKING:
    from omlab_medlsam.configuration import Configuration

Step = list[str]
#: Steps without which the later ones cannot be taken.
NEEDED = ("pull", "adapt")


@click.command("medlsam")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the results. [seg_save_path]")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path(), show_default="the present one",
    help="Where relative paths of CONFIG begin, as upstream's scripts have it.",
)  # fmt: skip
@click.option(
    "--names", type=click.Choice(["numbers", "structseg", "word"]), default="numbers", show_default=True,
    help="Names of the organs of fg_class: upstream's two datasets, or their numbers.",
)  # fmt: skip
@click.option("--score", is_flag=True, help="Score the answers against query_label_ls, too.")
@click.option("--accept-licence", multiple=True, help="Licence (SPDX id) that you accept; see omlab info medlam.")
@click.option("--engine", default="auto", show_default=True, help="As of omlab run.")
@click.option("--show", is_flag=True, help="Only tell the commands.")
def command(
    config: Path, out: Path | None, folder: Path, names: str, score: bool, accept_licence: tuple[str, ...], engine: str,
    show: bool,
) -> int:  # fmt: skip
    """Run CONFIG, a configuration file of upstream MedLSAM.

    Takes its weights, adapts MedLAM to its supports (OUT/model), and runs the model on its queries (OUT/results); with
    --score also measures Dice and distances (OUT/scores). Every step is an omlab command, which is told first.
    """
    from omlab.cli.main import main
    from omlab_medlsam import configuration

    found = configuration.read(config)
    if out is None and not found.out:
        raise UsageError(f"{config} has no seg_save_path", remedy="Name a folder of the results with -o")
    target, worst = out or folder / str(found.out), 0
    for step in steps(found, config, folder, target, names=names, score=score, accept=accept_licence, engine=engine):
        click.echo("omlab " + shlex.join(step))
        code = 0 if show else main(step)
        worst = max(worst, code)
        if code and step[0] in NEEDED:
            break  # a scan that fails leaves the others
    return worst


def steps(
    found: Configuration, config: Path, folder: Path, out: Path, *, names: str = "numbers", score: bool = False,
    accept: tuple[str, ...] = (), engine: str = "auto",
) -> list[Step]:  # fmt: skip
    """The commands, without their first word.

    Raises
    ------
    omlab.errors.InputError
        A list of queries cannot be read.
    omlab.errors.UsageError
        Scores are asked for and the queries have no label maps, or the path of the configuration cannot be told.
    """
    from omlab_medlsam import configuration

    if score and found.queries[1] is None:
        raise UsageError(f"{config} has no query_label_ls to score against", remedy="Leave --score out")
    if {",", ":"} & set(str(config.absolute())):
        raise UsageError(f"{config.absolute()} has a comma or a colon, which part the names of datasets")
    accepted = [word for licence in accept for word in ("--accept-licence", licence)]
    run_by = [] if engine == "auto" else ["--engine", engine]
    # From the present folder, since the two folders may be named in different ways.
    scans = f"medlsam-config,file={config.absolute()},names={names}:{folder}"
    model = str(out / "model")
    options = [word for key, value in found.options().items() for word in (f"--{key}", str(value))]
    made: list[Step] = []
    weights = {"medlam": found.medlam, "sam": found.sam}
    files = [f"--file={key}={folder / path}" for key, path in weights.items() if path]
    if files:
        made.append(["pull", "medlam", "--variant", found.variant, *files, *accepted])
    made.append([
        "adapt", "medlam", "--variant", found.variant, "--with", "medlsam", "--on", scans, *options, "-o", model,
        *accepted, *run_by,
    ])  # fmt: skip
    queries = [str(path) for path in configuration.paths(folder, found.queries[0])]
    made.append(["run", model, *queries, "-o", str(out / "results"), *run_by])
    if score:
        made.append([
            "evaluate", model, "--on", scans, "--split", "test", "--with", "segmentation", "-o", str(out / "scores"),
            *run_by,
        ])  # fmt: skip
    return made
