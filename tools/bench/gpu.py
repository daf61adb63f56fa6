"""Every network of the plugins at its published size on an NVIDIA GPU, name-seeded: milliseconds, the share of what the
device can do at best, and the error against float32.

Ways: torch eager and torch.compile in float32, bfloat16 and float16, and every GPU engine of omlab that is installed.
Batch 1 and the largest of 4, 16 and 64 that the graph takes and the memory holds. The floor is the greater of
arithmetic over the rate of a large matrix product and bytes of weights over the rate of a large copy, both measured
here in the same run and precision. Without a GPU every row reads 'not measured'::

    tools/bench/gpu --only retfound --only stunet
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from common import machine

from omlab.errors import OmlabError
from omlab.graphs import Graph
from omlab.plugins import Registry
from omlab.vocabulary import Kind

BATCHES = (1, 4, 16, 64)
NOT_MEASURED = "not measured"


@attrs.frozen(kw_only=True)
class Row:
    """One way of running one graph; ``None`` where it was not measured."""

    what: str
    batch: int
    way: str
    milliseconds: float | None = None
    floor_ms: float | None = None
    error: float | None = None
    note: str = ""

    def line(self) -> str:
        """As a row of a Markdown table."""
        if self.milliseconds is None:
            return f"| {self.what} | {self.batch} | {self.way} | {NOT_MEASURED} | | | {self.note} |"
        share = "" if self.floor_ms is None else f"{self.floor_ms / self.milliseconds:.0%}"
        error = "" if self.error is None else f"{self.error:.1e}"
        return (
            f"| {self.what} | {self.batch} | {self.way} | {self.milliseconds:.3f} | {share} | {error} | {self.note} |"
        )


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Median over the rounds, by the device's own clock."""
    import torch

    for _ in range(3):
        call()
    taken = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end))
    return statistics.median(taken)


@attrs.frozen
class Limits:
    """What the device reaches at best: floating-point operations a second by precision, and bytes a second."""

    operations: dict[str, float]
    bytes: float

    @classmethod
    def measured(cls, rounds: int) -> Limits:
        """By a product of 8192 x 8192 matrices and a copy of 2 GB."""
        import torch

        operations = {}
        for name in ("float32", "bfloat16", "float16"):
            a = torch.randn(8192, 8192, device="cuda", dtype=getattr(torch, name))
            operations[name] = 2 * 8192**3 / (milliseconds(partial(torch.mm, a, a), rounds) / 1e3)
        source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return cls(operations, 2 * (1 << 30) / (milliseconds(partial(target.copy_, source), rounds) / 1e3))

    def floor_ms(self, operations: float, weights: int, precision: str) -> float:
        """Least time that arithmetic and weights allow."""
        width = 4 if precision == "float32" else 2
        return 1e3 * max(operations / self.operations[precision], weights * width / self.bytes)


def graphs(registry: Registry, only: list[str]) -> Iterator[tuple[str, Any, Any, Graph]]:
    """(name, seeded model, variant, graph) of all models, in their first variant."""
    from omlab_sdk.contract.networks import Seeded

    for name, card in registry.cards(Kind.MODEL).items():
        if only and name not in only:
            continue
        try:
            model = Seeded(registry.load(Kind.MODEL, name))
            variant = attrs.evolve(card.variants[0], weights=())
            for graph in model.graphs(variant):
                yield f"{name}/{graph.name}", model, variant, graph
        except (OmlabError, TypeError) as error:
            print(f"{name}: {error}", file=sys.stderr)


def batches(model: Any, graph: Graph, variant: Any) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The model's own example, repeated along the batch where the graph leaves it open."""
    example = next(iter(model.examples(graph, variant)))
    first = {spec.name: spec.shape[0] for spec in graph.inputs}
    # A dimension called batch must lead every input: prompts of one image, say, cannot be repeated alone.
    growing = all(dimension == "batch" for dimension in first.values())
    limit = min((spec.ranges.get("batch", (1, 1, 1))[2] for spec in graph.inputs), default=1)
    for size in BATCHES if growing else (1,):
        if size <= limit:
            yield size, {key: np.repeat(value[:1], size, axis=0) for key, value in example.items()}


def measure(what: str, model: Any, variant: Any, graph: Graph, limits: Limits, rounds: int) -> Iterator[Row]:
    """Rows of torch eager and compiled."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = model.network(graph, variant, {}).cuda()
    weights = sum(p.numel() for p in network.parameters())
    for size, given in batches(model, graph, variant):
        tensors = [torch.from_numpy(np.ascontiguousarray(given[spec.name])).cuda() for spec in graph.inputs]
        try:
            with torch.inference_mode():
                with FlopCounterMode(display=False) as counter:
                    reference = _first(network.float()(*tensors)).float()
                operations = counter.get_total_flops()
                for precision in ("float32", "bfloat16", "float16"):
                    dtype = getattr(torch, precision)
                    cast = copy.deepcopy(network).to(dtype)
                    inputs = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
                    for way, run in (("eager", cast), ("compile", torch.compile(cast, mode="max-autotune"))):
                        found = _first(run(*inputs)).float()
                        error = float((found - reference).norm() / reference.norm())
                        yield Row(
                            what=what, batch=size, way=f"torch {way} {precision}",
                            milliseconds=milliseconds(partial(run, *inputs), rounds),
                            floor_ms=limits.floor_ms(operations, weights, precision), error=error,
                        )  # fmt: skip
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            yield Row(what=what, batch=size, way="torch", note=str(error).splitlines()[0][:80])
        finally:
            torch.cuda.empty_cache()
            torch._dynamo.reset()


def _first(found: Any) -> Any:
    return found if hasattr(found, "norm") else found[0]


def engines(what: str, model: Any, variant: Any, graph: Graph, rounds: int, root: Path) -> Iterator[Row]:
    """Rows of omlab's own GPU engines, arrays in and out of the host included."""
    import time

    from engines import engines_of

    found = engines_of(model, graph, variant, Registry.discover(), root)
    ready = {label: engine for label, engine in found if engine.info.device == "cuda"}
    for size, given in batches(model, graph, variant):
        for label, engine in ready.items():
            if engine.info.backend == "torch":
                continue
            engine(given)
            taken = []
            for _ in range(rounds):
                start = time.perf_counter()
                engine(given)
                taken.append(time.perf_counter() - start)
            yield Row(
                what=what, batch=size, way=f"omlab {label}", milliseconds=statistics.median(taken) * 1e3,
                note="with copies to and from the host",
            )  # fmt: skip


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="this model; all without it")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each way [20]")
    options = parser.parse_args()
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(f"{machine()}, {device or 'no GPU'}, torch {torch.__version__}\n")
    print("| network | batch | way | ms | share of the floor | error against float32 | |")
    print("|---|--:|---|--:|--:|--:|---|")
    registry = Registry.discover()
    if device is None:
        for what, _, _, _ in graphs(registry, options.only):
            print(Row(what=what, batch=1, way="any", note="this machine has no GPU").line())
        return 0
    limits = Limits.measured(options.rounds)
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in limits.operations.items())
    print(f"limits measured here: {rates}, {limits.bytes / 1e12:.2f} TB/s", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        for what, model, variant, graph in graphs(registry, options.only):
            try:
                for row in measure(what, model, variant, graph, limits, options.rounds):
                    print(row.line(), flush=True)
                for row in engines(what, model, variant, graph, options.rounds, Path(scratch)):
                    print(row.line(), flush=True)
            except (OmlabError, RuntimeError, TypeError) as error:
                print(Row(what=what, batch=1, way="any", note=str(error).splitlines()[0][:80]).line(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
