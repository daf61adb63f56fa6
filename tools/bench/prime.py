"""PRIME: residues a second for each engine, and every single substitution of a protein against one pass a mutant.

Weights are name-seeded, at the published size unless ``--layers`` says less; speed does not depend on their values::

    python tools/bench/prime.py
    python tools/bench/prime.py --layers 6 --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from common import Row, interleaved, table
from engines import engines_of

from omlab.errors import EngineError
from omlab.plugins import Registry
from omlab.vocabulary import Kind
from omlab_prime import mutants
from omlab_prime.network import BASE
from omlab_prime.vocabulary import AMINO_ACIDS, batch, encode

#: A protein of 400 residues, drawn with a fixed seed.
PROTEIN = "M" + "".join(np.random.default_rng(0).choice(list(AMINO_ACIDS), 399))
#: Mutants that are run one by one; the time of all 7,600 is told from theirs.
SOME = 3


def engines_and_inputs(layers: int, registry: Registry, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Admitted engines of the network with so many layers, and batches of proteins for it."""
    from omlab_sdk.contract.networks import Seeded

    inner = registry.load(Kind.MODEL, "prime")
    variant = inner.card.variants[0]
    size = BASE | {"num_hidden_layers": layers}
    variant = attrs.evolve(variant, weights=(), config=dict(variant.config) | {"size": size})
    model = Seeded(inner)
    (graph,) = model.graphs(variant)
    engines = dict(engines_of(model, graph, variant, registry, root))
    if "torch float32" not in engines:
        raise EngineError("torch eager does not run it, there is nothing to compare with")
    inputs = {}
    for rows in (1, 4):
        ids, mask = batch([encode(PROTEIN)] * rows)
        inputs[f"{rows} x 400 residues"] = {"ids": ids, "mask": mask}
    return engines, inputs


def measure(layers: int, rounds: int) -> Iterator[Row]:
    """Rows of all engines, then of the saturation scan on the fastest."""
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        engines, inputs = engines_and_inputs(layers, Registry.discover(), Path(scratch))
        fastest = min(engines, key=lambda label: engines[label].info.backend == "torch")
        for what, given in inputs.items():
            times = interleaved({label: partial(engine, given) for label, engine in engines.items()}, rounds)
            eager = statistics.median(times["torch float32"])
            fastest = min(times, key=lambda label: statistics.median(times[label]))
            for label, taken in times.items():
                median = statistics.median(taken)
                residues = given["mask"].sum() - 2 * len(given["mask"])
                yield Row(
                    what=f"prime, {layers} layers, {what}", way=label, seconds=median, best=min(taken),
                    ratio=eager / median, note=f"{residues / median:.0f} residues/s",
                )  # fmt: skip
        yield from saturation(engines[fastest], fastest, engines["torch float32"])


def saturation(engine: Any, label: str, eager: Any) -> Iterator[Row]:
    """All 19 x 400 substitutions: one pass over the wild type, against a pass a mutant in torch eager."""
    ids, mask = batch([encode(PROTEIN)])
    start = time.perf_counter()
    logits = engine({"ids": ids, "mask": mask})["logits"]
    scores = mutants.saturation(PROTEIN, mutants.log_probabilities(logits[0, 1:-1]))
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for column in range(SOME):
        changed = ids.copy()
        changed[0, 1 + column] = encode("A")[1]
        eager({"ids": changed, "mask": mask})
    each = (time.perf_counter() - start) / SOME
    count = scores.size - len(PROTEIN)
    yield Row(
        what=f"saturation, {count} mutants", way="torch eager, a pass a mutant", seconds=each * count,
        best=each * count, ratio=1.0, note=f"from {SOME} of them",
    )  # fmt: skip
    yield Row(
        what=f"saturation, {count} mutants", way=f"omlab, {label}", seconds=ours, best=ours, ratio=each * count / ours,
        note="the published rule needs the wild type alone",
    )  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=BASE["num_hidden_layers"], help="layers of the network [33]")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds [3]")
    options = parser.parse_args()
    try:
        rows = list(measure(options.layers, options.rounds))
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(rows, baseline="torch eager"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
