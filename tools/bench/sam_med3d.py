"""SAM-Med3D: the encoder by folded windows against upstream's way in every engine, and clicks a second after the first.

Upstream computes each window with its padding, in torch eager, and its scripts encode the cube once for each structure.
Weights are name-seeded at the published size; speed does not depend on their values. All ways run in turn, round by
round, in one process::

    python tools/bench/sam_med3d.py
    python tools/bench/sam_med3d.py --rounds 9 --store /var/tmp/engines
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, table
from engines import engines_of
from sam_med2d import rows_of

from omlab.errors import OmlabError
from omlab.plugins import Registry
from omlab.vocabulary import Kind

PADDED = "torch eager, windows padded (upstream)"


def _encode(eager: Any, tensor: Any, *, folding: bool) -> Any:
    import torch

    for block in eager.image_encoder.blocks:
        block.folding = folding
    with torch.inference_mode():
        return eager.image_encoder(tensor)


def encoders(eager: Any, engines: Mapping[str, Any], image: np.ndarray, rounds: int) -> Iterator[Row]:
    """One cube through the encoder: as upstream computes it in torch eager, folded, and in every engine."""
    import torch

    tensor = torch.from_numpy(image)
    padded = _encode(eager, tensor, folding=False)
    ways: dict[str, Callable[[], Any]] = {
        PADDED: lambda: _encode(eager, tensor, folding=False),
        "torch eager, folded": lambda: _encode(eager, tensor, folding=True),
    }  # fmt: skip
    for label, engine in engines.items():
        if not label.startswith("torch"):
            ways[f"{label}, folded"] = lambda engine=engine: engine({"image": image})["image_embeddings"]
    for name, way in list(ways.items())[1:]:
        error = float((torch.as_tensor(way()) - padded).norm() / padded.norm())
        print(f"encoder, {name}: relative error {error:.1e} against padded windows", file=sys.stderr)
    yield from rows_of("encoder, one cube of 128 voxels", ways, PADDED, rounds, {}, "cubes")


def clicks(eager: Any, encoder: Any, decoders: Mapping[str, Any], image: np.ndarray, rounds: int) -> Iterator[Row]:
    """A click after the first: a full pass in torch eager, against the decoder alone on the embedding that is there."""
    import torch

    from omlab_sam_med3d.predictor import Predictor

    tensor, size = torch.from_numpy(image), image.shape[-1]
    point = torch.tensor([[[64.0, 60, 70]]]), torch.ones(1, 1)
    low = torch.zeros(1, 1, *[size // 4] * 3)

    def full() -> Any:
        embedding = _encode(eager, tensor, folding=False)
        with torch.inference_mode():
            return eager.decode(embedding, point, low)

    upstream = "torch eager, a full pass a click"
    ways: dict[str, Callable[[], Any]] = {upstream: full}
    embedding = encoder({"image": image})["image_embeddings"]
    before = np.zeros([size // 4] * 3, np.float32)
    for label, engine in decoders.items():
        predictor = Predictor(engine, embedding, size)
        ways[f"{label}, decoder"] = lambda predictor=predictor: predictor.decode([[64, 60, 70]], [1], before)
    yield from rows_of("a click after the first", ways, upstream, rounds, {}, "clicks")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds [5]")
    parser.add_argument("--store", type=Path, help="keep the engines here; a temporary folder without it")
    options = parser.parse_args()
    from omlab_sam_med3d.network import Sam3d
    from omlab_sdk.contract.networks import Seeded
    from omlab_sdk.golden import seed_module

    registry = Registry.discover()
    model = Seeded(registry.load(Kind.MODEL, "sam-med3d"))
    variant = model.card.variant()
    image = next(iter(model.examples(model.graphs(variant)[0], variant)))["image"]
    eager = seed_module(Sam3d.of_size().eval())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        try:
            found = {
                graph.name: dict(engines_of(model, graph, variant, registry, options.store or Path(scratch)))
                for graph in model.graphs(variant)
            }
            rows += encoders(eager, found["encoder"], image, options.rounds)
            rows += clicks(eager, next(iter(found["encoder"].values())), found["decoder"], image, options.rounds)
        except OmlabError as error:
            print(f"sam-med3d: {error}", file=sys.stderr)
    print(table(rows, baseline="upstream's way"))
    return 0 if rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
