"""Scoring label maps against MONAI's functions and DeepMind's surface-distance, on real label maps.

    python tools/bench/segmentation.py [--rounds 3]

Every way gives Dice, HD95 and surface Dice at 1 mm for every structure of a pair of label maps, in a process of its own
(peers in ``.bench-peers/segmentation``, made on the first run); processes take turns, imports are not counted. HD95 of
omlab is compared with MONAI's (one definition: voxel surfaces), surface Dice with both, Dice with both.

``--large`` adds a label map of 768 x 768 x 90, without MONAI: its functions take more than four minutes and 9 GB for
one round of it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, table

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
#: What is too much for MONAI; see above.
LARGE = "15 organs, 768 x 768 x 90"
PEER = ROOT / ".bench-peers" / "segmentation"


def peer() -> Path:
    """Python of the peers' environment."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        for packages in (["torch==2.13.0"], ["monai", "surface-distance", "scipy"]):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (PEER / "ready").touch()
    return python


def pairs(*, large: bool = False) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[float, ...]]]:
    """(what, prediction, reference, spacing in mm): two models' outlines of one CT; manual labels against themselves
    shifted, and the labels of a longer CT likewise."""
    from omlab.results import read_segmentation

    example = DATA / "totalsegmentator_example"
    fast, full = (read_segmentation(example / f"example_seg{name}.nii.gz") for name in ("_fast", ""))
    yield "41 structures, 122 x 101 x 30", fast.labels, full.labels, full.geometry.spacing_mm
    long = read_segmentation(example / "example_seg_fast_force_split.nii.gz")
    yield "61 structures, 122 x 101 x 112", np.roll(long.labels, (1, 1), (0, 1)), long.labels, long.geometry.spacing_mm
    if not large:
        return
    amos = read_segmentation(DATA / "amos_label" / "amos_0001.nii.gz")
    labels = amos.labels.astype(np.uint8)
    yield LARGE, np.roll(labels, (4, -3), (0, 1)), labels, amos.geometry.spacing_mm


def differences(found: dict[str, Any], other: dict[str, Any], column: int) -> float:
    """Greatest relative difference over the labels; infinite and undefined values must be so on both sides."""
    worst = 0.0
    for label, row in found.items():
        a, b = float(row[column]), float(other[label][column])
        if math.isfinite(a) and math.isfinite(b):
            worst = max(worst, abs(a - b) / max(abs(b), 1.0))
        elif not (math.isnan(a) and math.isnan(b)) and a != b:
            # MONAI calls a quantile of infinities not a number.
            worst = worst if math.isinf(a) and math.isnan(b) else math.inf
    return worst


def run(rounds: int, *, large: bool = False) -> list[Row]:
    """Rows of every way on every pair."""
    rows = []
    script = str(Path(__file__).with_name("segmentation_peer.py"))
    ways = {"surface-distance": str(peer()), "monai": str(peer()), "omlab": sys.executable}
    for what, prediction, reference, spacing in pairs(large=large):
        told: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            pair = Path(folder) / "pair.npz"
            np.savez(pair, prediction=prediction, reference=reference, spacing=np.array(spacing))
            for way, python in ways.items():
                if way == "monai" and what == LARGE:
                    continue
                command = [python, script, way, str(pair), str(rounds)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                told[way] = json.loads(output.splitlines()[-1])
        ours = told["omlab"]["found"]
        for way, one in told.items():
            middle = statistics.median(one["seconds"])
            note = ""
            if way != "omlab":
                columns = {"Dice": 0, "surface Dice": 2} | ({"HD95": 1} if way == "monai" else {})
                parts = [f"{name} {differences(ours, one['found'], column):.0e}" for name, column in columns.items()]
                note = "greatest difference from ours: " + ", ".join(parts)
            ratio = statistics.median(told["surface-distance"]["seconds"]) / middle
            rows.append(Row(what=what, way=way, seconds=middle, best=min(one["seconds"]), ratio=ratio, note=note))
    return rows


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also a label map of 768 x 768 x 90, without MONAI")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not here")
    print(table(run(options.rounds, large=options.large), baseline="surface-distance"))


if __name__ == "__main__":
    main()
