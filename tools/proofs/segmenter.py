"""A small STU-Net learns the structures of one CT, through the commands that a user has.

    python tools/proofs/segmenter.py [--epochs 12 --epochs 16] [--batches 50] [--precision float32] [--keep FOLDER]

The scan and its label map (shared/data/totalsegmentator_example: a CT of 3 mm and labels that TotalSegmentator gave it)
become a dataset in nnU-Net's raw layout. `omlab adapt` trains STU-Net-S from random weights on it, `omlab run` segments
the scan, `omlab score` compares, `omlab export` writes the network. It is the scan that was learnt from: the proof is
that learning, exporting and running fit together, not that the network knows anatomy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "totalsegmentator_example"
#: Of those that lie in the scan: large and small, in pairs and in rows.
STRUCTURES = (
    "liver", "spleen", "kidney_left", "kidney_right", "stomach", "pancreas", "aorta", "inferior_vena_cava",
    "lung_lower_lobe_left", "lung_lower_lobe_right", "colon", "small_bowel", "autochthon_left", "autochthon_right",
    "iliopsoas_left", "iliopsoas_right", "vertebrae_L1", "vertebrae_L2", "vertebrae_L3", "vertebrae_L4", "vertebrae_L5",
    "sacrum", "hip_left", "hip_right",
)  # fmt: skip


def dataset(folder: Path) -> Path:
    """The example as nnU-Net's raw layout, with :data:`STRUCTURES` numbered from 1 and the rest dropped."""
    import SimpleITK as sitk

    known = {name: number for number, name in enumerate(STRUCTURES, start=1)}
    names = json.loads((DATA / "label_names.json").read_text())["total"]
    table = np.zeros(max(map(int, names)) + 1, np.uint8)
    for value, name in names.items():
        table[int(value)] = known.get(name, 0)
    found = sitk.ReadImage(str(DATA / "example_seg_fast_force_split.nii.gz"))
    labels = sitk.GetImageFromArray(table[sitk.GetArrayFromImage(found)])
    labels.CopyInformation(found)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    shutil.copy(DATA / "example_ct.nii.gz", folder / "imagesTr" / "example_0000.nii.gz")
    sitk.WriteImage(labels, str(folder / "labelsTr" / "example.nii.gz"))
    description = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0} | known, "numTraining": 1, "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def omlab(*arguments: str | Path) -> str:
    """Run a command; its standard output."""
    command = [sys.executable, "-m", "omlab", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def prove(folder: Path, stages: Sequence[int], options: Sequence[str]) -> dict[str, object]:
    """What came out of trainings of so many epochs, each going on with what the one before had learnt (but for the
    head, which begins anew); the last model is left in ``folder / "model"``. Models that are there are not made again.
    """
    raw = folder / "Dataset701_Example"
    if not raw.exists():
        dataset(raw)
    base = ["stunet", "--variant", "small-scratch"]
    steps, seconds = 0, 0.0
    for number, epochs in enumerate(stages, start=1):
        model = folder / ("model" if number == len(stages) else f"model{number}")
        if not model.exists():
            omlab(
                "adapt", *base, "--with", "segmenter-tuning", "--on", f"nnunet-raw:{raw}", "-o", model, "--json",
                "--epochs", str(epochs), *options,
            )  # fmt: skip
        report = json.loads((model / "report.json").read_text())
        steps, seconds = steps + report["steps"], seconds + report["seconds"]
        base = [str(model)]
    omlab("run", model, raw / "imagesTr" / "example_0000.nii.gz", "-o", folder / "out", "--json")
    (found,) = (folder / "out").rglob("segmentation.nii.gz")
    scored = json.loads(omlab("score", "segmentation", found, raw / "labelsTr" / "example.nii.gz", "--json"))
    dice = {
        name.removesuffix("/dice"): value["value"]
        for name, value in scored["summary"].items()
        if name.endswith("/dice") and value["value"] is not None
    }
    omlab("export", model, "-o", folder / "onnx")
    present = [row for row in scored["cases"] if row["voxels_reference"]]
    return {
        "steps": steps, "seconds": seconds, "loss": report["history"][-1]["loss"],
        "structures in the scan": len(present),
        "mean Dice of them": float(np.mean([row["dice"] for row in present])),
        "median Dice of them": float(np.median([row["dice"] for row in present])),
        "structures found that are not there": sum(not row["voxels_reference"] for row in scored["cases"]
                                                   if row["voxels_prediction"]),
        "liver": dice.get("liver"), "exported": sorted(path.name for path in (folder / "onnx").iterdir()),
    }  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, action="append", help="once for each training in a row [12, 16]")
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="bfloat16", help="float32 where a processor has no bfloat16 [bfloat16]")
    parser.add_argument("--keep", type=Path, help="keep model and results here")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not here")
    given = [
        "--batches", str(options.batches), "--batch", "1", "--patch",
        str(options.patch), "--optimiser", "adamw", "--lr", str(options.lr), "--augment", "none",
        "--precision", options.precision,
    ]  # fmt: skip
    os.environ.setdefault("COLUMNS", "120")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        found = prove(options.keep, options.epochs or [12, 16], given)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            found = prove(Path(scratch), options.epochs or [12, 16], given)
    for name, value in found.items():
        print(f"{name:36} {value:.4g}" if isinstance(value, float) else f"{name:36} {value}")


if __name__ == "__main__":
    main()
