"""The pipeline of whole slides against plain loops: patches a second, and peak memory.

The slide is a pyramid of JPEG tiles of 100,000 x 100,000 pixels, written here; a part of it is taken. The ways are

- ``plain loop, torch``: what scripts of the field do with one worker and a batch of one: openslide-python reads a
  patch, torch eager prepares it and runs the same network on it;
- ``plain loop, our engine``: one patch at a time through our reader, our preparation and the engine of the pipeline, so
  that what the pipeline itself gains is told apart from what the engine gains;
- ``pipeline``: what ``omlab run brow`` does.

``reading`` leaves the encoder out: what is left is reading and preparing. Each way runs in processes of its own, in
turn, so that each has its own peak of memory::

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
TORCH, ENGINE, PIPELINE = "plain loop, torch", "plain loop, our engine", "pipeline"
WAYS = (TORCH, ENGINE, PIPELINE)
#: Features of two ways differ by less: one decoder of JPEG rounds otherwise than another.
AGREES = 0.02


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


def middle(image: Any) -> Any:
    """In place of an encoder: colours of the pixel in the middle."""
    return image[:, :, 112, 112]


def torch_loop(path: Path, made: Any, network: Any) -> Callable[[], np.ndarray]:
    """One worker, one patch at a time, in openslide-python, Pillow and torch eager."""
    import openslide
    import torch

    slide = openslide.OpenSlide(path)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def run() -> np.ndarray:
        kept = []
        with torch.inference_mode():
            for x, y in made.coords.tolist():
                patch = slide.read_region((x, y), 0, (made.patch, made.patch)).convert("RGB").crop((16, 16, 240, 240))
                image = torch.from_numpy(np.array(patch)).permute(2, 0, 1).contiguous().float().div(255)
                kept.append(network(image.sub(mean).div(std)[None]))
        return torch.cat(kept).numpy()

    return run


def engine_loop(slide: Any, made: Any, compute: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
    """The same with our reader and engine."""
    from omlab_brow import preprocess

    def run() -> np.ndarray:
        kept = []
        for x, y in made.coords.tolist():
            patch = slide.region(x, y, made.patch, made.patch)
            kept.append(compute(preprocess.evaluation(patch[None])).copy())
        return np.concatenate(kept)

    return run


def pipeline(
    slide: Any, made: Any, compute: Callable[[np.ndarray], np.ndarray], width: int
) -> Callable[[], np.ndarray]:  # fmt: skip
    """What the model does with a slide."""
    from omlab.inference.slides import extract
    from omlab.model import Context
    from omlab_brow import preprocess

    context = Context(variant=None, engines={})  # type: ignore[arg-type]
    return lambda: extract(
        slide, made, context, prepare=preprocess.evaluation, compute=compute, width=width, identity={}, batch=32
    ).features()


def measure(case: str, way: str, path: Path, patches: int, home: Path) -> dict[str, Any]:
    """One way of one case, in this process. Its features go into a file of ``home``."""
    from omlab.cases import slide as slides
    from omlab.inference.slides import plan
    from omlab.memory import peak_mb

    slide = slides.read(path)
    made = plan(slide)
    # A square part of the middle: patches that lie near each other, as on a real slide.
    nearest = np.abs(made.coords - SIDE // 2).max(axis=1).argsort(kind="stable")[:patches]
    made = attrs.evolve(made, coords=made.coords[np.sort(nearest)])
    network: Any = middle
    compute: Callable[[np.ndarray], np.ndarray] = middle
    width, engine = 3, ""
    if case != "reading":
        loaded = model_of(case, home)
        width = loaded.graphs[0].outputs[0].shape[1]
        if way == TORCH:
            import torch

            network = loaded.model.network(loaded.graphs[0], loaded.variant, {})
            with torch.inference_mode():
                network(torch.zeros(1, 3, 224, 224))  # what is made at the first run is not counted
            engine = "torch eager"
        else:
            encoder = loaded.engines["encoder"]
            engine = f"{encoder.info.backend} {encoder.info.precision}"
            compute = lambda image: encoder({"image": image})["feature"]  # noqa: E731
            for count in (1, 32):
                compute(np.zeros((count, 3, 224, 224), np.float32))
    before = peak_mb()
    if way == TORCH:
        run = torch_loop(path, made, network)
    elif way == ENGINE:
        run = engine_loop(slide, made, compute)
    else:
        run = pipeline(slide, made, compute, width)
    start = time.perf_counter()
    features = run()
    seconds = time.perf_counter() - start
    np.save(home / f"{case} {way}.npy", features)
    return {"seconds": seconds, "peak_mb": peak_mb(), "before_mb": before, "engine": engine}


def report(case: str, patches: int, found: dict[str, list[dict[str, Any]]], home: Path) -> None:
    """Rows of a case. Ends the run where two ways gave other features."""
    features = {way: np.load(home / f"{case} {way}.npy") for way in found}
    medians = {way: statistics.median(row["seconds"] for row in rows) for way, rows in found.items()}
    label = f"{patches}, {'reading alone' if case == 'reading' else f'brow {case}'}"
    for way, rows in found.items():
        error = np.linalg.norm(features[way] - features[TORCH]) / np.linalg.norm(features[TORCH])
        if not error < AGREES:
            raise SystemExit(f"{case}: '{way}' gave features that differ by {error:.1e} from those of '{TORCH}'")
        best = min(row["seconds"] for row in rows)
        peak, grown = (max(row["peak_mb"] - base for row in rows) for base in (0, rows[0]["before_mb"]))
        print(
            f"| {label} | {way} | {patches / medians[way]:.1f} | {patches / best:.1f} | "
            f"{medians[TORCH] / medians[way]:.2f} | {medians[ENGINE] / medians[way]:.2f} | {peak:.0f} MB | "
            f"{grown:.0f} MB | {rows[0]['engine']} |",
            flush=True,
        )


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
    print(
        "| patches | way | patches/s, median | best | times faster than torch | than the plain loop of our engine | "
        "peak memory | of it by the work | |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        home = Path(scratch)
        path = pyramids.write(home / "slide.tif", (SIDE, SIDE), pyramids.disc((SIDE / 2, SIDE / 2), 0.3 * SIDE))
        for case in options.only or CASES:
            patches = options.patches or CASES[case]
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    command = [sys.executable, __file__, "--child", case, way, str(path), str(patches), scratch]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    found[way].append(json.loads(done.stdout.splitlines()[-1]))
            report(case, patches, found, home)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
