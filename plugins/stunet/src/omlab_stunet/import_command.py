"""``omlab import-stunet``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("import-stunet")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Model directory to make.")
@click.option("--fold", default="0", show_default=True, help="Which fold: 0 to 4, or all.")
@click.option("--checkpoint", "name", default="", help="Name of the checkpoint without its ending. [the final one]")
@click.option("--labels", default="", help="dataset.json that names the structures, or their names: aorta,liver,...")
@click.option("--licence", default="LicenseRef-not-stated", show_default=True, help="SPDX id of the weights' licence.")
@click.pass_context
def command(context: click.Context, folder: Path, out: Path, fold: str, name: str, labels: str, licence: str) -> None:
    """Make a model directory of FOLDER, which nnU-Net 1 or 2 left with a trainer of STU-Net (the one above fold_0).

    The plan that the network was trained with is taken over. `omlab run DIRECTORY` runs what is made, `omlab adapt`
    goes on from it; both need omlab-segmenter-tuning.
    """
    from omlab.cli.main import registry_of
    from omlab.vocabulary import Kind
    from omlab_stunet.importing import import_folder

    card = registry_of(context).card(Kind.MODEL, "stunet")
    found = import_folder(folder, out, card, fold=fold, name=name, labels=labels, licence=licence)  # type: ignore[arg-type]
    size = " x ".join(f"{mm:g}" for mm in found.config["spacing_mm"])
    click.echo(f"made {out}: {len(found.structures)} structures at {size} mm; next: omlab run {out / ''} FILE")
