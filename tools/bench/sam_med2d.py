"""SAM-Med2D: prompts a second after the first, and the encoder in every engine, folded and not.

Upstream answers each prompt by a full pass through encoder and decoder, in torch eager. Here a picture is looked at
once and then asked. Weights are name-seeded at the published size; speed does not depend on their values. All ways run
in turn, round by round, in one process::

    python tools/bench/sam_med2d.py
    python tools/bench/sam_med2d.py --rounds 9 --store /var/tmp/engines
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, interleaved, table
from engines import engines_of

from omlab.errors import OmlabError
from omlab.plugins import Registry
from omlab.vocabulary import Kind

#: Prompts of one call of the decoder.
BATCHES = (1, 16, 64)


def rows_of(
    what: str, ways: Mapping[str, Callable[[], Any]], baseline: str, rounds: int, each: Mapping[str, int], unit: str
) -> Iterator[Row]:
    """Rows of ``ways``; ``each`` tells how many things one call of a way does, and seconds are of one thing."""
    times = interleaved(ways, rounds)
    base = statistics.median(times[baseline]) / each.get(baseline, 1)
    for name, taken in times.items():
        count = each.get(name, 1)
        median = statistics.median(taken) / count
        yield Row(
            what=what, way=name, seconds=median, best=min(taken) / count, ratio=base / median,
            note=f"{1 / median:.1f} {unit}/s",
        )  # fmt: skip


def encoders(eager: Any, engines: Mapping[str, Any], image: np.ndarray, rounds: int) -> Iterator[Row]:
    """One picture through the encoder: as upstream computes it in torch eager, folded, and in every engine."""
    import torch

    tensor = torch.from_numpy(image)

    def run(folding: bool) -> Any:
        for block in eager.image_encoder.blocks:
            block.folding = folding
        with torch.inference_mode():
            return eager.image_encoder(tensor)

    padded, folded = run(False), run(True)
    error = float((folded - padded).norm() / padded.norm())
    ways: dict[str, Callable[[], Any]] = {
        "torch eager, windows padded (upstream)": lambda: run(False), "torch eager, folded": lambda: run(True),
    }  # fmt: skip
    for label, engine in engines.items():
        if not label.startswith("torch"):
            ways[f"{label}, folded"] = lambda engine=engine: engine({"image": image})
    print(f"folded against padded: relative error {error:.1e}", file=sys.stderr)
    yield from rows_of("encoder, one picture", ways, "torch eager, windows padded (upstream)", rounds, {}, "pictures")


def prompts(eager: Any, encoder: Any, decoders: Mapping[str, Any], image: np.ndarray, rounds: int) -> Iterator[Row]:
    """A box after the first: a full pass in torch eager, against the decoder alone on the embedding that is there."""
    import torch

    from omlab_sdk.segment_anything.frame import frame_of
    from omlab_sdk.segment_anything.predictor import Predictor

    tensor, box = torch.from_numpy(image), torch.tensor([[60.0, 70, 180, 200]])

    def full() -> Any:
        for block in eager.image_encoder.blocks:
            block.folding = False
        with torch.inference_mode():
            return eager.decode(eager.image_encoder(tensor), boxes=box)

    upstream = "torch eager, a full pass a prompt (upstream)"
    ways: dict[str, Callable[[], Any]] = {upstream: full}
    each = {}
    embedding = encoder({"image": image})["image_embeddings"]
    for label, engine in decoders.items():
        predictor = Predictor(engine, frame_of((256, 256), 256), embedding)
        for count in BATCHES:
            queries = [predictor.query(box=box[0].numpy() + n % 16) for n in range(count)]
            name = f"{label}, {count} at once"
            ways[name] = lambda predictor=predictor, queries=queries: predictor.predict(queries)
            each[name] = count
    yield from rows_of("a prompt after the first", ways, upstream, rounds, each, "prompts")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--store", type=Path, help="keep the engines here; a temporary folder without it")
    options = parser.parse_args()
    from omlab_sam_med2d.network import Sam
    from omlab_sdk.contract.networks import Seeded
    from omlab_sdk.golden import seed_module

    registry = Registry.discover()
    model = Seeded(registry.load(Kind.MODEL, "sam-med2d"))
    variant = model.card.variant()
    image = next(iter(model.examples(model.graphs(variant)[0], variant)))["image"]
    eager = seed_module(Sam.of_size().eval())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        try:
            found = {
                graph.name: dict(engines_of(model, graph, variant, registry, options.store or Path(scratch)))
                for graph in model.graphs(variant)
            }
            rows += encoders(eager, found["encoder"], image, options.rounds)
            rows += prompts(eager, next(iter(found["encoder"].values())), found["decoder"], image, options.rounds)
        except OmlabError as error:
            print(f"sam-med2d: {error}", file=sys.stderr)
    print(table(rows, baseline="upstream's way"))
    return 0 if rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
