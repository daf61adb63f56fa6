"""Every adapter on the chest X-rays of PneumoniaMNIST, by `small-vit`, which begins with random numbers.

    tools/proofs/adapters [--keep FOLDER] [--part full|few] [--quick]

Reads `shared/data/pneumonia_mnist/pneumoniamnist.npz` beside the project (or `--data FILE`), writes its images as PNG
files in class folders, and from there on uses only what every user has: `omlab.load`, `omlab.adapt`, `omlab.evaluate`.
`--keep` leaves the model directories, whose `report.html` has the learning curves; those that a folder has already are
not made again. `--part few` makes the table of few shots, which needs the pre-trained network only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import omlab
from omlab.evaluating import evaluate
from omlab.plugins import Registry
from omlab.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from common import machine

DATA = Path(__file__).parents[3] / "shared" / "data" / "pneumonia_mnist" / "pneumoniamnist.npz"
CLASSES = ("normal", "pneumonia")
#: Nine in ten training images show pneumonia: classes are drawn alike.
RECIPE: dict[str, Any] = {"batch": 64, "balance": True, "precision": "bfloat16", "warmup_epochs": 1.0}
#: A network that begins at random wants the same rate in all layers.
SCRATCH: dict[str, Any] = {"base_lr": 4e-3, "layer_decay": 1.0, "drop_path": 0.0}
TUNED: dict[str, dict[str, Any]] = {
    "lora": {"base_lr": 2e-2, "rank": 8},
    "prompt-tuning deep": {"base_lr": 4e-2, "depth": "deep"},
    "prompt-tuning shallow": {"base_lr": 4e-2, "depth": "shallow"},
}
FROZEN = ("linear-probe", "nearest-neighbours", "prototypes")
SHOTS = (1, 5, 10)
SEEDS = range(5)
FEW = "few"
#: What full fine-tuning must reach.
BAR = 0.90


def write_images(data: Path, root: Path) -> None:
    """The arrays as PNG files, `root/SPLIT/CLASS/NUMBER.png`."""
    with np.load(data) as file:
        for split in ("train", "val", "test"):
            for name in CLASSES:
                (root / split / name).mkdir(parents=True)
            for number, (pixels, label) in enumerate(
                zip(file[f"{split}_images"], file[f"{split}_labels"].ravel(), strict=True)
            ):
                Image.fromarray(pixels).save(root / split / CLASSES[int(label)] / f"{number:04}.png")


class Proof:
    """Adaptations of one data set, and the rows of a table."""

    def __init__(self, root: Path, out: Path) -> None:
        self.registry = Registry.discover()
        self.root, self.out = root, out

    def adapt(self, model: str | Path, adapter: str, name: str, **options: Any) -> dict[str, Any]:
        """The report of one adaptation; the directory is `out/name`, and is taken as it is if it is there."""
        report = self.out / name / "report.json"
        if name != FEW and report.is_file():
            found = json.loads(report.read_text("utf-8"))
            return found | {"wall": found["seconds"]}
        start = time.perf_counter()
        settings = Settings(home=self.out / "home")
        loaded = omlab.load(model, registry=self.registry, settings=settings)
        dataset = omlab.load_dataset(f"image-folder:{self.root}", registry=self.registry, settings=settings)
        options = {"duplicates": "drop", **options}
        found = omlab.adapt(loaded, adapter, dataset, self.out / name, options=options, registry=self.registry)
        return dict(found) | {"wall": time.perf_counter() - start}

    def evaluate(self, name: str) -> float:
        """Test AUC of a model directory as `omlab evaluate` finds it, by the fastest engine."""
        settings = Settings(home=self.out / "home")
        loaded = omlab.load(self.out / name, registry=self.registry, settings=settings)
        dataset = omlab.load_dataset(f"image-folder:{self.root}", registry=self.registry, settings=settings)
        report = evaluate(
            loaded, dataset, "classification", evaluator_options={"rounds": 0}, registry=self.registry
        ).report
        value = report.summary["auc"].value
        assert value is not None
        return float(value)


def say(*cells: Any) -> None:
    """One row of a Markdown table."""
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def pretrain(proof: Proof, epochs: int) -> dict[str, Any]:
    """The network that learnt from the training images without their labels."""
    return proof.adapt(
        "small-vit", "masked-autoencoder", "pretrained", epochs=epochs, batch=128, base_lr=2e-3, crop=0.5,
        warmup_epochs=3.0, precision="bfloat16",
    )  # fmt: skip


def full_rows(proof: Proof, epochs: int, pretraining: int) -> dict[str, float]:
    """All training images; test AUC by name."""
    found: dict[str, float] = {}
    say("adapter", "of", "weights that learn", "epochs", "val AUC", "test AUC", "test accuracy", "seconds")
    say("---", "---", "--:", "--:", "--:", "--:", "--:", "--:")

    def row(label: str, base: str, report: dict[str, Any]) -> None:
        found[f"{label} {base}"] = report["test_auc"]
        say(
            label, base, f"{report.get('trained_weights', 0):,}", len(report.get("history", ())) or "",
            f"{report['val_auc']:.3f}", f"**{report['test_auc']:.3f}**", f"{report['test_accuracy']:.3f}",
            f"{report['wall']:.0f}",
        )  # fmt: skip

    row("fine-tune", "random", proof.adapt("small-vit", "fine-tune", "ft-random", epochs=epochs, **RECIPE, **SCRATCH))
    report = pretrain(proof, pretraining)
    losses = [entry["val_loss"] for entry in report["history"]]
    say(
        "masked-autoencoder", "random", f"{report['weights']:,}", len(losses), "", "",
        f"val loss {losses[0]:.3f} to {losses[-1]:.3f}", f"{report['wall']:.0f}",
    )  # fmt: skip
    pretrained = proof.out / "pretrained"
    row("fine-tune", "pre-trained", proof.adapt(pretrained, "fine-tune", "ft-mae", epochs=epochs, **RECIPE, **SCRATCH))
    for label, options in TUNED.items():
        adapter, name = label.partition(" ")[0], label.replace(" ", "-")
        row(label, "pre-trained", proof.adapt(pretrained, adapter, name, epochs=epochs, **(RECIPE | options)))
    for adapter in FROZEN:
        for base, model in (("random", "small-vit"), ("pre-trained", pretrained)):
            row(adapter, base, proof.adapt(model, adapter, f"{adapter}-{base}"))
    return found


def few_rows(proof: Proof, pretraining: int, seeds: range) -> None:
    """One, five and ten images a class, drawn by several seeds: mean test AUC, and the least and the greatest."""
    pretrain(proof, pretraining)
    say("adapter", "of", *(f"test AUC, {shots} a class" for shots in SHOTS))
    say("---", "---", *("--:" for _ in SHOTS))
    for adapter in FROZEN:
        for base, model in (("random", "small-vit"), ("pre-trained", proof.out / "pretrained")):
            cells = []
            for shots in SHOTS:
                areas = [proof.adapt(model, adapter, FEW, shots=shots, seed=seed)["test_auc"] for seed in seeds]
                cells.append(f"{np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f})")
            say(adapter, base, *cells)


def main() -> int:
    """Print the tables; 1 where full fine-tuning stays below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="pneumoniamnist.npz")
    parser.add_argument("--keep", type=Path, help="folder for the model directories")
    parser.add_argument("--part", choices=("full", "few"), help="one table only")
    parser.add_argument("--quick", action="store_true", help="one epoch of each and one seed: does all of it run?")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        print(f"error: {arguments.data} is not there; name pneumoniamnist.npz with --data", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="omlab-proof-") as temporary:
        root, out = Path(temporary) / "xrays", arguments.keep or Path(temporary) / "models"
        out.mkdir(parents=True, exist_ok=True)
        write_images(arguments.data, root)
        names = ("omlab", "torch", "accelerate", "scikit-learn", "numpy")
        print(machine())
        print(f"{date.today().isoformat()}; {', '.join(f'{name} {version(name)}' for name in names)}; seed 0\n")
        proof = Proof(root, out)
        epochs, pretraining, seeds = (1, 1, range(1)) if arguments.quick else (6, 40, SEEDS)
        if arguments.part != "full":
            few_rows(proof, pretraining, seeds)
            print()
        if arguments.part == "few":
            return 0
        found = full_rows(proof, epochs, pretraining)
        reached, engine = found["fine-tune random"], proof.evaluate("ft-random")
        print(f"\nFull fine-tuning from random numbers: test AUC {reached:.4f}; by `omlab evaluate`: {engine:.4f}.")
        if arguments.quick:
            return 0
        if min(reached, engine) < BAR:
            print(f"error: that is less than {BAR}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
