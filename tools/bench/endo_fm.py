"""Endo-FM at its published size, on name-seeded weights: clips (or frames) a second of each engine against torch eager.

The baseline is the network with upstream's layers one by one in torch eager; the engines run the graph in which linear
layers are joined and the last block gives the class token alone, which is the same function::

    python tools/bench/endo_fm.py                          # encoder, classifier and segmenter, several minutes
    python tools/bench/endo_fm.py --only encoder --rounds 9
    python tools/bench/endo_fm.py --only detector          # 640 x 640 pixels: some seconds a frame
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, interleaved, table
from engines import engines_of

from omlab.errors import OmlabError
from omlab.plugins import Registry
from omlab.vocabulary import Kind

#: What -> model, variant, graph, and what is counted.
PARTS = {
    "encoder": ("endo-fm", "base", "encoder", "clips"),
    "classifier": ("endo-fm", "polypdiag", "classifier", "clips"),
    "segmenter": ("endo-fm-seg", None, "segmenter", "frames"),
    "detector": ("endo-fm-det", None, "frame", "frames"),
    "joiner": ("endo-fm-det", None, "join", "frames"),
}
USUAL = ("encoder", "segmenter")


def eager(what: str, given: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Upstream's form of the network in torch eager."""
    import torch

    from omlab_endo_fm.detection import Detector, FramePart, JoinPart
    from omlab_endo_fm.network import BASE, Classifier, VideoTransformer
    from omlab_endo_fm.segmentation import TransUNet
    from omlab_sdk.golden import seed_module

    build: dict[str, Callable[[], Any]] = {
        "encoder": lambda: VideoTransformer(**BASE),
        "classifier": lambda: Classifier(VideoTransformer(**BASE)),
        "segmenter": TransUNet,
        "detector": lambda: FramePart(Detector(**BASE)),
        "joiner": lambda: JoinPart(Detector(**BASE)),
    }
    network = seed_module(build[what]()).eval()
    if what == "encoder":  # the whole of the last block, as upstream computes it
        call: Callable[..., Any] = lambda clip: network.tokens(clip)[:, 0]  # noqa: E731
    else:
        call = network
    tensors = [torch.from_numpy(array) for array in given.values()]

    def run() -> Any:
        with torch.inference_mode():
            return call(*tensors)

    return run


def measure(what: str, registry: Registry, root: Path, rounds: int) -> list[Row]:
    """Rows of one network."""
    from omlab_sdk.contract.networks import Seeded

    name, variant_name, graph_name, unit = PARTS[what]
    inner = registry.load(Kind.MODEL, name)
    variant = inner.card.variant(variant_name)
    model = Seeded(inner)
    graph = next(g for g in model.graphs(variant) if g.name == graph_name)
    given = next(iter(model.examples(graph, variant)))
    ways: dict[str, Callable[[], Any]] = {"torch eager": eager(what, given)}
    for label, engine in engines_of(model, graph, variant, registry, root):
        ways[label] = partial(engine, given)
    times = interleaved(ways, rounds)
    base = statistics.median(times["torch eager"])
    count = len(next(iter(given.values()))) if what == "segmenter" else 1
    rows = []
    for label, taken in times.items():
        median = statistics.median(taken)
        note = f"{count / median:.2f} {unit}/s"
        rows.append(
            Row(what=f"{name}/{graph_name}", way=label, seconds=median, best=min(taken), ratio=base / median, note=note)
        )
    return rows


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help=f"this network; {', '.join(USUAL)} else")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--store", type=Path, help="keep the engines here; a temporary folder without it")
    options = parser.parse_args()
    registry = Registry.discover()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        for what in options.only or USUAL:
            try:
                rows += measure(what, registry, options.store or Path(scratch), options.rounds)
            except OmlabError as error:
                print(f"{what}: {error}", file=sys.stderr)
    print(table(rows, baseline="torch eager"))
    return 0 if rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
