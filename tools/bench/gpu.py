"""Every network of the plugins at its published size on an NVIDIA GPU, name-seeded: milliseconds, the share of what the
device can do at best, and the error against float32.

Ways: torch eager and torch.compile in float32, bfloat16 and float16, and every GPU engine of omlab that is installed.
Batch 1 and the largest of 4, 16 and 64 that the graph takes and the memory holds. The floor is the greater of
arithmetic over the rate of a large matrix product and bytes of weights over the rate of a large copy, both measured
here in the same run and precision. Without a GPU every row reads 'not measured'. Networks of the same layers and inputs
are measured once, whatever variants there are::

    tools/bench/gpu --only retfound --only stunet
    tools/bench/gpu --trial     # small networks of the same code on the CPU: does every row come?

The numbers of a trial say nothing of any device: it is there so that time on a GPU is not spent on finding defects.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
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


def milliseconds(call: Callable[[], Any], rounds: int, device: str = "cuda") -> float:
    """Median over the rounds, by the device's own clock."""
    import torch

    if device == "cpu":
        taken = []
        for _ in range(rounds):
            begin = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(taken)
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
    def measured(cls, rounds: int, device: str = "cuda") -> Limits:
        """By a product of 8192 x 8192 matrices and a copy of 2 GB; on the CPU, of a trial, by little ones."""
        import torch

        side, size = (8192, 1 << 30) if device == "cuda" else (256, 1 << 20)
        operations = {}
        for name in ("float32", "bfloat16", "float16"):
            a = torch.randn(side, side, device=device, dtype=getattr(torch, name))
            operations[name] = 2 * side**3 / (milliseconds(partial(torch.mm, a, a), rounds, device) / 1e3)
        source = torch.empty(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(operations, 2 * size / (milliseconds(partial(target.copy_, source), rounds, device) / 1e3))

    def floor_ms(self, operations: float, weights: int, precision: str) -> float:
        """Least time that arithmetic and weights allow."""
        width = 4 if precision == "float32" else 2
        return 1e3 * max(operations / self.operations[precision], weights * width / self.bytes)


def graphs(
    registry: Registry, only: list[str], *, small: bool = False, look: bool = True
) -> Iterator[tuple[str, Any, Any, Graph]]:
    """(name, seeded model, variant, graph) of every network of all models, once for variants of one configuration.

    Parameters
    ----------
    small : in the size that the model gives for checks.
    look : build outlines, seconds each: of networks with the same layers and inputs only the first.
    """
    from omlab_sdk.contract.networks import Seeded

    for name, card in registry.cards(Kind.MODEL).items():
        if only and name not in only:
            continue
        try:
            inner = registry.load(Kind.MODEL, name)
            seen: set[Any] = set()
            for published in card.variants:
                bare = attrs.evolve(published, weights=())
                variant = inner.small(bare) if small else bare
                for graph in inner.graphs(variant):
                    config = (graph.name, repr(variant.config))
                    if config in seen:
                        continue
                    layers = _layers(inner, graph, variant) if look else config
                    if layers not in seen:
                        yield f"{name}/{published.name}/{graph.name}", Seeded(inner), variant, graph
                    seen |= {config, layers}
        except (OmlabError, TypeError) as error:
            print(f"{name}: {error}", file=sys.stderr)


def _layers(model: Any, graph: Graph, variant: Any) -> tuple[Any, ...]:
    """What two variants have in common where their networks cost the same."""
    from omlab_sdk.contract.sizes import NoOutline, outline

    shapes = (graph.name, *(spec.concrete() for spec in graph.inputs))
    try:
        return (*shapes, *sorted(outline(model, graph, variant).parameters))
    except NoOutline:
        return (*shapes, repr(sorted(graph.config.items())))


def batches(model: Any, graph: Graph, variant: Any, device: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The model's own example, repeated along the batch where the graph leaves it open; on the CPU 1 and 4 of it."""
    example = next(iter(model.examples(graph, variant)))
    first = {spec.name: spec.shape[0] for spec in graph.inputs}
    # A dimension called batch must lead every input: prompts of one image, say, cannot be repeated alone.
    growing = all(dimension == "batch" for dimension in first.values())
    limit = min((spec.ranges.get("batch", (1, 1, 1))[2] for spec in graph.inputs), default=1)
    for size in BATCHES if growing else (1,):
        if size <= limit and (device == "cuda" or size <= BATCHES[1]):
            repeated = {key: np.repeat(value[:1], size, axis=0) for key, value in example.items()}
            yield size, repeated if growing else example


def measure(
    what: str, model: Any, variant: Any, graph: Graph, limits: Limits, rounds: int, device: str = "cuda"
) -> Iterator[Row]:
    """Rows of torch eager and compiled; on the CPU, of a trial, what is compiled is only captured."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    compiled = {"mode": "max-autotune"} if device == "cuda" else {"backend": "eager"}
    network = model.network(graph, variant, {}).to(device).requires_grad_(False)  # counting stumbles over gradients
    weights = sum(p.numel() for p in network.parameters())
    for size, given in batches(model, graph, variant, device):
        tensors = [torch.from_numpy(np.ascontiguousarray(given[spec.name])).to(device) for spec in graph.inputs]
        try:
            with torch.inference_mode():
                with FlopCounterMode(display=False) as counter:
                    reference = _first(network.float()(*tensors)).float()
                operations = counter.get_total_flops()
                for precision in ("float32", "bfloat16", "float16"):
                    dtype = getattr(torch, precision)
                    cast = copy.deepcopy(network).to(dtype)
                    inputs = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
                    for kind, run in (("eager", cast), ("compile", torch.compile(cast, **compiled))):
                        way = f"torch {kind} {precision}"
                        try:
                            found = _first(run(*inputs)).float()
                            taken = milliseconds(partial(run, *inputs), rounds, device)
                        except RuntimeError as error:  # a network that computes a part in float32, say
                            yield Row(what=what, batch=size, way=way, note=str(error).splitlines()[0][:80])
                            continue
                        yield Row(
                            what=what, batch=size, way=way, milliseconds=taken,
                            floor_ms=limits.floor_ms(operations, weights, precision),
                            error=float((found - reference).norm() / reference.norm()),
                        )  # fmt: skip
        except RuntimeError as error:  # a lack of memory is one
            yield Row(what=what, batch=size, way="torch", note=str(error).splitlines()[0][:80])
        finally:
            torch.cuda.empty_cache()
            torch._dynamo.reset()


def _first(found: Any) -> Any:
    return found if hasattr(found, "norm") else found[0]


def engines(
    what: str, model: Any, variant: Any, graph: Graph, rounds: int, root: Path, device: str = "cuda"
) -> Iterator[Row]:
    """Rows of omlab's own engines on the device, arrays in and out of the host included."""
    from engines import engines_of

    found = engines_of(model, graph, variant, Registry.discover(), root)
    ready = {label: engine for label, engine in found if engine.info.device == device}
    for size, given in batches(model, graph, variant, device):
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
    parser.add_argument("--trial", action="store_true", help="small networks on the CPU, once: does every row come?")
    options = parser.parse_args()
    import torch

    if options.trial:
        return _table(Registry.discover(), options.only, 1, "cpu")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(f"{machine()}, {device or 'no GPU'}, torch {torch.__version__}\n")
    print("| network | batch | way | ms | share of the floor | error against float32 | |")
    print("|---|--:|---|--:|--:|--:|---|")
    registry = Registry.discover()
    if device is None:
        for what, _, _, _ in graphs(registry, options.only, look=False):
            print(Row(what=what, batch=1, way="any", note="this machine has no GPU").line(), flush=True)
        return 0
    return _table(registry, options.only, options.rounds, "cuda")


def _table(registry: Registry, only: list[str], rounds: int, device: str) -> int:
    """Rows of every network; 1 where one of a trial cannot be run at all."""
    trial, failed = device == "cpu", 0
    limits = Limits.measured(rounds, device)
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in limits.operations.items())
    print(f"limits measured here: {rates}, {limits.bytes / 1e12:.2f} TB/s", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="omlab-bench-") as scratch:
        for what, model, variant, graph in graphs(registry, only, small=trial, look=not trial):
            try:
                for row in measure(what, model, variant, graph, limits, rounds, device):
                    failed += row.milliseconds is None
                    print(row.line(), flush=True)
                for row in engines(what, model, variant, graph, rounds, Path(scratch), device):
                    print(row.line(), flush=True)
            except (OmlabError, RuntimeError, TypeError, ValueError) as error:
                failed += 1
                print(Row(what=what, batch=1, way="any", note=str(error).splitlines()[0][:80]).line(), flush=True)
    return 1 if trial and failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
