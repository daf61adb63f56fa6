"""What the benchmarks of promptable models share: the encoder in every engine, and prompts after the first.

Upstream computes every window of the encoder with its padding, in torch eager, and answers each prompt by a full pass
through encoder and decoder. Here windows are folded, and a case is looked at once and then asked. Weights are
name-seeded at the published size; speed does not depend on their values. All ways run in turn, round by round, in one
process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
from common import Row, compared, table
from engines import engines_of

from omlab.cards import Variant
from omlab.errors import OmlabError
from omlab.plugins import Registry
from omlab.vocabulary import Kind

PADDED = "torch eager, windows padded (upstream)"
FULL = "torch eager, a full pass a prompt (upstream)"


class Asked(Protocol):
    """How a model is asked once it has looked at something."""

    def pass_of(self, eager: Any, embedding: Any, side: int) -> Any:
        """A prompt through the decoder in torch; ``embedding`` is what the encoder just gave."""
        ...

    def ways(self, decoder: Any, embedding: np.ndarray, side: int) -> Iterable[tuple[str, Callable[[], Any], int]]:
        """Through an engine, on an embedding that is there: name, call, and how many prompts the call answers."""
        ...


@attrs.frozen(kw_only=True)
class Bench:
    """What differs from one model to the next.

    Attributes
    ----------
    model : its name.
    thing, prompt : what the encoder is given, and what is asked, as words of the table.
    network : the whole network of a variant in torch, with ``image_encoder`` whose blocks have ``folding``.
    asked : how it is asked.
    """

    model: str
    thing: str
    prompt: str
    network: Callable[[Variant], Any]
    asked: Asked


def encode(eager: Any, tensor: Any, *, folding: bool) -> Any:
    """The embedding by torch eager, with folded windows or, as upstream, padded ones."""
    import torch

    for block in eager.image_encoder.blocks:
        block.folding = folding
    with torch.inference_mode():
        return eager.image_encoder(tensor)


def encoders(bench: Bench, eager: Any, engines: Mapping[str, Any], image: np.ndarray, rounds: int) -> Iterator[Row]:
    """The encoder as upstream computes it in torch eager, folded, and in every engine."""
    import torch

    tensor = torch.from_numpy(image)
    ways: dict[str, Callable[[], Any]] = {
        PADDED: lambda: encode(eager, tensor, folding=False),
        "torch eager, folded": lambda: encode(eager, tensor, folding=True),
    }  # fmt: skip
    for label, engine in engines.items():
        if not label.startswith("torch"):
            ways[f"{label}, folded"] = lambda engine=engine: engine({"image": image})["image_embeddings"]
    padded = ways[PADDED]()
    for name, way in list(ways.items())[1:]:
        error = float((torch.as_tensor(way()) - padded).norm() / padded.norm())
        print(f"encoder, {name}: relative error {error:.1e} against padded windows", file=sys.stderr)
    yield from compared(f"encoder, one {bench.thing}", ways, PADDED, rounds, unit=f"{bench.thing}s")


def prompts(
    bench: Bench, eager: Any, encoder: Any, decoders: Mapping[str, Any], image: np.ndarray, rounds: int
) -> Iterator[Row]:
    """After the first: a full pass in torch eager, against the decoder alone on the embedding that is there."""
    import torch

    tensor, side = torch.from_numpy(image), image.shape[-1]

    def full() -> Any:
        embedding = encode(eager, tensor, folding=False)
        with torch.inference_mode():
            return bench.asked.pass_of(eager, embedding, side)

    ways: dict[str, Callable[[], Any]] = {FULL: full}
    each = {}
    embedding = encoder({"image": image})["image_embeddings"]
    for label, engine in decoders.items():
        for name, call, count in bench.asked.ways(engine, embedding, side):
            ways[f"{label}, {name}"], each[f"{label}, {name}"] = call, count
    yield from compared(f"a {bench.prompt} after the first", ways, FULL, rounds, each=each, unit=f"{bench.prompt}s")


def main(bench: Bench, doc: str) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--store", type=Path, help="keep the engines here; a temporary folder without it")
    parser.add_argument("--small", action="store_true", help="a small network, to see that all of it runs")
    options = parser.parse_args()
    from omlab_sdk.contract.networks import Seeded
    from omlab_sdk.golden import seed_module

    registry = Registry.discover()
    inner = registry.load(Kind.MODEL, bench.model)
    variant = inner.small(inner.card.variant()) if options.small else inner.card.variant()
    model = Seeded(inner)
    image = next(iter(model.examples(model.graphs(variant)[0], variant)))["image"]
    eager = seed_module(bench.network(variant).eval())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        try:
            found = {
                graph.name: dict(engines_of(model, graph, variant, registry, options.store or Path(scratch)))
                for graph in model.graphs(variant)
            }
            encoder = next(iter(found["encoder"].values()))
            rows += encoders(bench, eager, found["encoder"], image, options.rounds)
            rows += prompts(bench, eager, encoder, found["decoder"], image, options.rounds)
        except OmlabError as error:
            print(f"{bench.model}: {error}", file=sys.stderr)
    print(table(rows, baseline="upstream's way"))
    return 0 if rows else 1
