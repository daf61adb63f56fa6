"""Axon-Seg as a model of omlab: a light-sheet stack, or a cube of one, to a label map of axons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Stack, Volume
from omlab.errors import InputError, UsageError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.results import Label, Segmentation

if TYPE_CHECKING:
    import torch

    from omlab.prompts import Prompts
    from omlab_sdk.segmenters import Recipe

_SOURCES = (
    "omlab_axon_seg.network", "omlab_axon_seg.attention", "omlab_axon_seg.unet", "omlab_axon_seg.checkpoint",
    "omlab_sdk.networks.steady",
)  # fmt: skip


class AxonSeg(Model):
    """The model ``axon-seg``."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``net``: a window, normalised, to logits of background and axon; of an older network that has one output,
        to that of axons."""
        side = (side_of(variant),) * 3
        classes: int | str = 2 if variant.config["network"] == "axial" else "classes"
        axes = "batch channel z y x"
        return (
            Graph(
                name="net",
                inputs=(TensorSpec("image", "float32", (1, 1, *side), axes),),
                outputs=(
                    TensorSpec(
                        "logits", "float32", (1, classes, *side), axes,
                        {} if classes == 2 else {"classes": (1, 2, 2)},
                    ),
                ),
                judge=Judge.LABELS if classes == 2 else Judge.VALUES,
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )  # fmt: skip

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network as constructed."""
        from omlab_axon_seg.checkpoint import build

        return self.as_graph(build(str(variant.config["network"]), **arguments(variant)))

    def small(self, variant: Variant) -> Variant:
        """Windows of 48 voxels, three levels of few channels; the older network's levels are fixed."""
        if variant.config["network"] == "unet":
            return variant.configured(side=48)
        return variant.configured(side=48, base=8, num_pool=3, max_num_features=16, heads=2, dim_heads=4, skip=[2])

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with upstream's weights; at random for a variant that has none."""
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of axon-seg", install="omlab-axon-seg[convert]")
        from omlab_axon_seg.checkpoint import load

        if not variant.weights:
            from omlab_sdk.segmenters import beginning

            with beginning():
                return self.untrained(graph, variant)
        (asset,) = variant.weights
        given = {name: value for name, value in arguments(variant).items() if name != "side"}
        kind = str(variant.config["network"])
        network = load(files[asset.id], kind, side=(side_of(variant),) * 3, **given)
        return self.as_graph(_fitting(network, kind, str(files[asset.id])))

    @staticmethod
    def as_graph(network: torch.nn.Module) -> torch.nn.Module:
        """As it is exported: instance norms are replaced in place by ones that every engine computes alike."""
        from omlab_sdk.networks.steady import steady

        return steady(network).eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """Threads on a dim ground, normalised like a stack."""
        yield {"image": threads(graph.inputs[0].concrete()[2:])[None, None]}

    def recipe(
        self, variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Any = None, **changes: Any
    ) -> Recipe:
        """How it learns from cubes (:class:`omlab_sdk.segmenters.Tunable`): D-LMBmap's recipe."""
        from omlab_axon_seg import tuning

        return tuning.recipe(variant, files, outputs, state=state, **changes)

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, Any]) -> torch.nn.Module:
        """The network of ``graph`` with trained weights."""
        from omlab_axon_seg.checkpoint import build
        from omlab_sdk.checkpoints import load_into

        network = build(str(variant.config["network"]), **arguments(variant))
        load_into(network, state, name=f"the weights of '{self.card.name}'")
        return self.as_graph(network)

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for options out of their range."""
        from omlab_axon_seg import pipeline

        pipeline.check(options, max(side_of(variant) for variant in self.card.variants))

    def predict(self, case: Case, context: Context) -> Segmentation:
        """Label map in the form of the input, with lengths; of a stack also densities, and centre lines.

        A stack goes block by block as upstream's whole-brain script has it (:mod:`omlab_axon_seg.pipeline`), a volume
        as nnU-Net predicts cubes (:mod:`omlab_axon_seg.volumes`).

        Options: see the card.

        Raises
        ------
        omlab.errors.InputError
            The case is neither, a plane is damaged, or the region lies outside of it.
        omlab.errors.UsageError
            An option is out of its range, or for stacks and the case is a volume.
        """
        if not isinstance(case, Stack | Volume):
            raise InputError(f"{case.name}: axon-seg takes a stack of planes or a volume, found {case.kind}")
        from omlab_axon_seg import pipeline, volumes

        engine = context.engines["net"]

        def network(tile: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
            return engine({"image": np.ascontiguousarray(tile[None, None])})["logits"][0]

        label, side = Label.of((context.variant.labels or self.card.labels)[0]), side_of(context.variant)
        if isinstance(case, Volume):
            return volumes.run(case, context, network, label, side)
        return pipeline.run(case, context, network, label, side)


def side_of(variant: Variant) -> int:
    """Voxels along each side of a window."""
    return int(variant.config["side"])


def arguments(variant: Variant) -> dict[str, Any]:
    """Constructor arguments of a variant's network, as far as the card tells them."""
    if variant.config["network"] == "unet":
        return {}
    names = ("base", "num_pool", "max_num_features", "heads", "dim_heads", "skip")
    return {"side": (side_of(variant),) * 3} | {n: variant.config[n] for n in names if n in variant.config}


def _fitting(network: torch.nn.Module, kind: str, name: str) -> torch.nn.Module:
    """Raise :class:`UsageError` for a network that takes several channels or tells more than axons apart."""
    from omlab_axon_seg.checkpoint import arguments_of

    found = arguments_of(network.state_dict(), kind)
    channels = found.get("channels", found.get("in_channels"))
    outputs = found.get("num_classes", found.get("n_classes"))
    if channels != 1 or outputs > 2:
        raise UsageError(
            f"{name}: the network takes {channels} channels and has {outputs} outputs; axon-seg has one channel, and "
            "background and axon",
            remedy="Use omlab_axon_seg.checkpoint.load with your own arrays",
        )
    return network


def threads(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Bright threads on ``shape`` voxels (z, y, x), normalised; deterministic."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    found = np.zeros(shape, np.float32)
    width = np.float32(2.0 / shape[0]) ** 2 * 3
    for number in range(12):
        turn, shift = 0.7 * number, 0.16 * number - 0.9
        found += np.exp(-((y - shift - 0.3 * np.sin(3 * z + turn)) ** 2 + (x - 0.8 * np.cos(turn + z)) ** 2) / width)
    found = 3000 + 14000 * found + 400 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return ((found - found.mean()) / found.std()).astype(np.float32)
