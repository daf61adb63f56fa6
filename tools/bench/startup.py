"""How long `omlab list` takes with thirty plugins installed beside ours, against `python -c "import click"`.

python tools/bench/startup.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import Row, table
from processes import interleaved, median

MANIFEST = (Path(__file__).parents[2] / "plugins/deepbet/src/omlab_deepbet/omlab.toml").read_text("utf-8")
PLUGINS = 30


def generate(site: Path) -> None:
    """Thirty plugins with a manifest as long as deepbet's, each with metadata like an installed one."""
    for number in range(PLUGINS):
        name = f"generated{number}"
        package = site / f"omlab_{name}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('a listing must not import this')\n")
        (package / "omlab.toml").write_text(MANIFEST.replace('name = "deepbet"', f'name = "{name}"', 1))
        info = site / f"omlab_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: omlab-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[omlab]\n{name} = omlab_{name}\n")


def run(rounds: int = 15) -> list[Row]:
    """Rows against importing click."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        # As after an installation: modules are compiled once, whatever this shell has set, and nothing of ours is read
        # or written outside.
        environment = {
            "PYTHONPATH": folder, "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": f"{folder}/compiled", "OMLAB_HOME": f"{folder}/home",
        }  # fmt: skip
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import click": [sys.executable, "-c", "import click"],
            "omlab --help": [sys.executable, "-m", "omlab", "--help"],
            f"omlab list, {PLUGINS} more plugins": [sys.executable, "-m", "omlab", "list"],
        }
        found = interleaved(commands, rounds, environment=environment)
    base = median(found["import click"]).seconds
    return [
        Row(
            what="start", way=name, seconds=median(values).seconds, best=min(v.seconds for v in values),
            ratio=base / median(values).seconds, note=f"{(median(values).seconds - base) * 1e3:+.0f} ms",
        )
        for name, values in found.items()
    ]  # fmt: skip


if __name__ == "__main__":
    print(table(run(), baseline="import click"))
