"""deepbet as a whole process, second run, against deepbet's own code on the same scan.

    python tools/bench/deepbet.py [SCAN]

The peer lives in an environment of its own (``.bench-peers/deepbet``), made on the first run. Without a scan the whole
head of ``../shared`` is taken, else the MNI152 template.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from common import Row, table
from processes import interleaved, median

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".bench-peers" / "deepbet"
OWN_CODE = "from deepbet import run_bet; import sys; run_bet([sys.argv[1]], mask_paths=[sys.argv[2]], no_gpu=True)"


def peer() -> Path:
    """Python of the peer's environment."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        for package in ("torch==2.13.0", "deepbet==1.0.2"):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        (PEER / "ready").touch()
    return python


def default_scan() -> Path:
    """A whole head, if the folder of real data is here; else the template, which has no skull."""
    shared = ROOT.parent / "shared" / "data" / "volumes" / "chris_t1.nii.gz"
    if shared.is_file():
        return shared
    import omlab

    return omlab.pull("mni152")["t1"]


def run(scan: Path | None = None, rounds: int = 5) -> list[Row]:
    """Rows against deepbet's own code, with peak memory and the agreement of the masks."""
    scan = scan or default_scan()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs.nii.gz"
        commands = {
            "deepbet's own run_bet": [str(peer()), "-P", "-c", OWN_CODE, str(scan), str(theirs)],
            "omlab run deepbet": [
                sys.executable, "-m", "omlab", "run", "deepbet", str(scan), "-o", str(ours), "--pull", "-q",
            ],
            "omlab run deepbet --no-picture": [
                sys.executable, "-m", "omlab", "run", "deepbet", str(scan), "-o", str(ours), "-q", "--no-picture",
            ],
        }  # fmt: skip
        found = interleaved(commands, rounds)
        import omlab
        from omlab.results import read_segmentation

        mask = next(ours.glob("*/segmentation.nii.gz"))
        report = omlab.score("segmentation", [mask, theirs])
        flips = int((read_segmentation(mask).labels != read_segmentation(theirs).labels).sum())
        dice = next(value.value for name, value in report.summary.items() if name.endswith("/dice"))
    base = median(found["deepbet's own run_bet"])
    rows = []
    for name, values in found.items():
        middle = median(values)
        note = f"peak {middle.peak_mb:.0f} MB"
        if name.startswith("omlab"):
            note += f" ({middle.peak_mb / base.peak_mb:.2f} of its), Dice {dice:.6f}, {flips} voxels differ"
        best = min(v.seconds for v in values)
        rows.append(
            Row(
                what=scan.name,
                way=name,
                seconds=middle.seconds,
                best=best,
                ratio=base.seconds / middle.seconds,
                note=note,
            )
        )
    return rows


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    print(table(run(given), baseline="deepbet's own code"))
