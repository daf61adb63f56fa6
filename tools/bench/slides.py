"""The pipeline of whole slides against a plain loop: patches a second, and peak memory.

The slide is a pyramid of JPEG tiles of 100,000 x 100,000 pixels, written here; a part of it is taken. The plain loop is
one worker that reads a patch, prepares it, runs the encoder on it alone and keeps its features, with the same reader
and the same engine; the pipeline is what ``omlab run brow`` does. ``reading`` leaves the encoder out: what is left is
reading and preparing. Each way runs in processes of its own, in turn, so that each has its own peak of memory::

    python tools/bench/slides.py                       # BROW's smallest and published size, and reading alone
    python tools/bench/slides.py --patches 4000 --only reading
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from common import machine

SIDE = 100_000
#: What is measured -> patches.
CASES = {"reading": 3000, "tiny": 600, "base": 96}
WAYS = ("plain loop", "pipeline")


def model_of(variant: str, home: Path) -> Any:
    """BROW with name-seeded weights: speed does not depend on their values."""
    from omlab.loading import EngineChoice, LoadedModel
    from omlab.plugins import Registry
    from omlab.settings import Settings
    from omlab.vocabulary import Kind
    from omlab_sdk.contract.networks import Seeded

    registry = Registry.discover()
    model = registry.load(Kind.MODEL, "brow")
    chosen = attrs.evolve(model.card.variant(variant), weights=())
    settings = attrs.evolve(Settings.from_environment(), home=home)
    return LoadedModel(
        Seeded(model), chosen, registry=registry, settings=settings, choice=EngineChoice(precision="float32")
    )


def measure(case: str, way: str, path: Path, patches: int, home: Path) -> dict[str, Any]:
    """One way of one case, in this process."""
    from omlab.cases import slide as slides
    from omlab.inference.slides import extract, plan
    from omlab.memory import peak_mb
    from omlab.model import Context
    from omlab_brow import preprocess

    slide = slides.read(path)
    made = plan(slide)
    # A square part of the middle: patches that lie near each other, as on a real slide.
    middle = np.abs(made.coords - SIDE // 2).max(axis=1).argsort(kind="stable")[:patches]
    made = attrs.evolve(made, coords=made.coords[np.sort(middle)])
    compute: Callable[[np.ndarray], np.ndarray] = lambda image: image[:, :, 112, 112].copy()  # noqa: E731
    width, context, engine = 3, None, ""
    if case != "reading":
        loaded = model_of(case, home)
        encoder = loaded.engines["encoder"]
        engine = f"{encoder.info.backend} {encoder.info.precision}"
        compute = lambda image: encoder({"image": image})["feature"]  # noqa: E731
        width = loaded.graphs[0].outputs[0].shape[1]
        for count in (1, 32):
            compute(np.zeros((count, 3, 224, 224), np.float32))  # what is made at the first run is not counted
    before = peak_mb()
    start = time.perf_counter()
    if way == "plain loop":
        kept = []
        for corner in made.coords:
            patch = slide.region(int(corner[0]), int(corner[1]), made.patch, made.patch)
            kept.append(compute(preprocess.evaluation(patch[None]))[0])
        features = np.stack(kept)
    else:
        context = Context(variant=None, engines={})  # type: ignore[arg-type]
        result = extract(
            slide, made, context, prepare=preprocess.evaluation, compute=compute, width=width, identity={}, batch=32
        )
        features = result.features()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "peak_mb": peak_mb(), "before_mb": before, "engine": engine,
        "digest": [float(features[:, 0].mean()), float(features[-1, -1])],
    }  # fmt: skip


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(CASES), action="append", help="this case; all without it")
    parser.add_argument("--patches", type=int, help="patches of each case")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turn [3]")
    parser.add_argument("--child", nargs=5, metavar=("CASE", "WAY", "PATH", "PATCHES", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case, way, path, patches, home = options.child
        print(json.dumps(measure(case, way, Path(path), int(patches), Path(home))))
        return 0
    from omlab_sdk.contract import pyramids

    print(machine(), "\n")
    print("| patches | way | patches/s, median | best | times faster | peak memory | of it by the work | |")
    print("|---|---|--:|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        path = pyramids.write(
            Path(scratch) / "slide.tif", (SIDE, SIDE), pyramids.disc((SIDE / 2, SIDE / 2), 0.3 * SIDE)
        )
        for case in options.only or CASES:
            patches = options.patches or CASES[case]
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    command = [sys.executable, __file__, "--child", case, way, str(path), str(patches), scratch]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            first, second = (found[way][0]["digest"] for way in WAYS)
            if not np.allclose(first, second, rtol=1e-3, atol=1e-4):
                raise SystemExit(f"{case}: the two ways gave other features: {first} and {second}")
            plain = statistics.median(row["seconds"] for row in found["plain loop"])
            for way in WAYS:
                taken = [row["seconds"] for row in found[way]]
                peak = max(row["peak_mb"] for row in found[way])
                grown = max(row["peak_mb"] - row["before_mb"] for row in found[way])
                label = f"{patches}, {'reading alone' if case == 'reading' else f'brow {case}'}"
                print(
                    f"| {label} | {way} | {patches / statistics.median(taken):.1f} | {patches / min(taken):.1f} | "
                    f"{plain / statistics.median(taken):.2f} | {peak:.0f} MB | {grown:.0f} MB | "
                    f"{found[way][0]['engine']} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
