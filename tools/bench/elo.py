"""Elo ratings: 1,000 bootstrap rounds at once against one battle after the other over a pandas table, and a million
battles::

    python tools/bench/elo.py

The peer is the loop that arena evaluations use: rounds of ``DataFrame.sample`` and ``itertuples``. Its environment is
made on the first run (``.bench-peers/elo``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Row, table

from omlab_elo import battles as reading
from omlab_elo.rating import online, rate

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".bench-peers" / "elo"
LOOP = """
import json, sys, time
import numpy as np, pandas as pd
table = pd.DataFrame([json.loads(line) for line in open(sys.argv[1])])
rounds, seed = int(sys.argv[2]), int(sys.argv[3])
np.random.seed(seed)
start = time.perf_counter()
rows = []
for _ in range(rounds):
    ratings = {}
    for row in table.sample(frac=1.0, replace=True).itertuples():
        a, b = ratings.get(row.model_a, 1000.0), ratings.get(row.model_b, 1000.0)
        won = {"model_a": 1.0, "model_b": 0.0}.get(row.winner, 0.5)
        ratings[row.model_a] = a + 4 * (won - 1 / (1 + 10 ** ((b - a) / 400)))
        ratings[row.model_b] = b + 4 * (1 - won - 1 / (1 + 10 ** ((a - b) / 400)))
    rows.append(ratings)
median = pd.DataFrame(rows).quantile(0.5)
print(json.dumps({"seconds": time.perf_counter() - start, "median": median.to_dict()}))
"""


def peer() -> Path:
    """Python of the peer's environment."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "pandas"], check=True)
        (PEER / "ready").touch()
    return python


def made(path: Path, count: int, models: int = 12) -> Path:
    """Battles drawn with a fixed seed, as JSON lines."""
    generator = np.random.default_rng(0)
    first = generator.integers(0, models, count)
    second = (first + generator.integers(1, models, count)) % models
    winners = generator.choice(["model_a", "model_b", "tie"], count, p=[0.4, 0.4, 0.2])
    with open(path, "w", encoding="utf-8") as file:
        for a, b, winner in zip(first.tolist(), second.tolist(), winners.tolist(), strict=True):
            file.write(json.dumps({"model_a": f"m{a}", "model_b": f"m{b}", "winner": winner}) + "\n")
    return path


def main() -> int:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        path = made(Path(scratch) / "battles.jsonl", 660)
        command = [str(peer()), "-P", "-c", LOOP, str(path), "1000", "0"]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        battles = reading.read(path)
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            found = rate(battles, rounds=1000, seed=0)
            taken.append(time.perf_counter() - start)
        ours = found.of(found.median)
        gap = max(abs(ours[model] - value) for model, value in theirs["median"].items())
        what, slow, middle = "660 battles, 1,000 rounds", theirs["seconds"], sorted(taken)[2]
        rows.append(Row(what=what, way="pandas loop", seconds=slow, best=slow, ratio=1.0, note="once"))
        note = f"greatest difference of a median {gap:.1e}"
        rows.append(Row(what=what, way="omlab", seconds=middle, best=min(taken), ratio=slow / middle, note=note))
        path = made(Path(scratch) / "million.jsonl", 1_000_000)
        start = time.perf_counter()
        million = reading.read(path)
        seconds = time.perf_counter() - start
        rows.append(Row(what="1,000,000 battles", way="omlab, read", seconds=seconds, best=seconds))
        start = time.perf_counter()
        online(million)
        seconds = time.perf_counter() - start
        rows.append(Row(what="1,000,000 battles", way="omlab, rated in order", seconds=seconds, best=seconds))
        start = time.perf_counter()
        rate(million, rounds=1000, seed=0)
        seconds = time.perf_counter() - start
        rows.append(Row(what="1,000,000 battles", way="omlab, 1,000 rounds", seconds=seconds, best=seconds))
    print(table(rows, baseline="the pandas loop"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
