"""MedLAM as a model of omlab: a CT to its place in the body; the base that MedLSAM is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omlab.cards import Variant
from omlab.cases import Case, Volume
from omlab.errors import InputError, UsageError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Embedding
from omlab_medlsam.localising import look
from omlab_medlsam.medsam import SAM_SOURCES, trained_part, untrained_part
from omlab_medlsam.scans import prepare
from omlab_sdk.segment_anything.model import SMALL, sam_examples, sam_graphs

if TYPE_CHECKING:
    import torch

SOURCES = ("omlab_medlsam.network", "omlab_medlsam.checkpoint")
#: Edges of the kernels of three scales.
EDGES = (2, 4, 8)
MOST_CROPS = 1000


class MedLam(Model):
    """The model ``medlam``.

    Graphs: ``position`` (patches to places in the body), ``describe`` (a patch to its place and kernels), ``match`` (a
    patch and kernels to similarities). Adapted models of it also run :meth:`segmenter_graphs`.
    """

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """Those of MedLAM."""
        config = variant.config
        n, channels = int(config["patch"]), 4 * int(config["base_chns"])
        own = {key: value for key, value in config.items() if key != "sam"}
        axes = "batch channel z y x"
        patch = TensorSpec("patch", "float32", (1, 1, n, n, n), axes)
        place = TensorSpec("fc_position", "float32", (1, 3), "batch zyx")
        kernels = [
            TensorSpec(f"kernel{i}", "float32", (1, channels, k, k, k), "batch feature z y x")
            for i, k in enumerate(EDGES)
        ]
        shared: dict[str, Any] = {"sources": SOURCES, "config": own}
        return (
            Graph(
                name="position", inputs=(TensorSpec("patches", "float32", (1, 1, n, n, n), axes),), outputs=(place,),
                judge=Judge.VALUES, **shared,
            ),
            Graph(name="describe", inputs=(patch,), outputs=(place, *kernels), judge=Judge.VALUES, **shared),
            Graph(
                name="match", inputs=(patch, *kernels),
                outputs=(TensorSpec("similarity", "float32", (1, n, n, n), "batch z y x"),), judge=Judge.VALUES,
                **shared,
            ),
        )  # fmt: skip

    def segmenter_graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder`` and ``decoder`` of the variant's Segment Anything; none where it has none."""
        sam = variant.config.get("sam")
        return sam_graphs(int(sam["side"]), sam, SAM_SOURCES) if sam else ()

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The part of the networks that ``graph`` is of, as constructed."""
        if graph.name in ("encoder", "decoder"):
            return untrained_part(graph, variant.config["sam"])
        from omlab_medlsam import network

        config = variant.config
        medlam = network.MedLam(
            patch_size=(int(config["patch"]),) * 3, base_chns=int(config["base_chns"]),
            n_classes=int(config["n_classes"]),
        )  # fmt: skip
        return _part(graph, medlam)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The part of the networks that ``graph`` is of, with the published weights."""
        if graph.name in ("encoder", "decoder"):
            return trained_part(graph, variant.config["sam"], files, self.card.name)
        require("torch", needed_for="making the engine of medlam", install="omlab-medlsam[convert]")
        from omlab_medlsam.checkpoint import load_medlam

        config = variant.config
        medlam = load_medlam(
            files["medlam"], patch=int(config["patch"]), base_chns=int(config["base_chns"]),
            n_classes=int(config["n_classes"]),
        )  # fmt: skip
        return _part(graph, medlam)

    def small(self, variant: Variant) -> Variant:
        """Patches of 32 voxels and few channels; a small Segment Anything."""
        found = variant.configured(patch=32, base_chns=4)
        sam = variant.config.get("sam")
        return found.configured(sam={**sam, "side": 128, "shape": SMALL}) if sam else found

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """A patch of soft tissue with a vessel and bone; kernels of unit features."""
        if graph.name in ("encoder", "decoder"):
            config = variant.config["sam"]
            yield from sam_examples(graph, int(config["side"]), str(config["way"]))
            return
        patch = phantom(int(variant.config["patch"]))[None, None]
        given = {graph.inputs[0].name: patch}
        generator = np.random.default_rng(0)
        for spec in graph.inputs[1:]:
            kernel = generator.standard_normal(spec.concrete()).astype(np.float32)
            given[spec.name] = np.abs(kernel) / np.linalg.norm(kernel, axis=1, keepdims=True)
        yield given

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for options out of their range."""
        check_crops(self.card.name, options)

    def predict(self, case: Case, context: Context) -> Embedding:
        """``vector`` [3], the mean of what the position head says of the crops along z, y, x; ``tokens`` [crops, 3] of
        each. The tangens hyperbolicus of the difference of two scans, times 1500, 600, 600 mm, is the way between them.

        Raises
        ------
        InputError
            The case is no volume, its spacing is impossible, or there is only air in its middle.
        """
        scan = volume_of(case, self.card.name)
        with context.stage("prepare"):
            prepared = prepare(scan)
        position = context.engines["position"]
        with context.stage("network"):
            query = look(
                position, prepared.image, int(context.variant.config["patch"]), crops=int(context.options["crops"]),
                seed=int(context.options["seed"]), name=case.name,
            )  # fmt: skip
        return Embedding(vector=query.position, tokens=query.positions)


def check_crops(name: str, options: Mapping[str, Any]) -> None:
    """Raises :class:`omlab.errors.UsageError` for crops or a seed out of range."""
    if not 1 <= options["crops"] <= MOST_CROPS:
        raise UsageError(f"'{name}': option 'crops' is from 1 to {MOST_CROPS}, found {options['crops']}")
    if not 0 <= options["seed"] < 2**32:
        raise UsageError(f"'{name}': option 'seed' is from 0 to 2^32 - 1, found {options['seed']}")


def volume_of(case: Case, name: str) -> Volume:
    """The case as a volume. Raises :class:`omlab.errors.InputError` for another kind."""
    if not isinstance(case, Volume):
        raise InputError(f"{case.name}: {name} takes a volume, found {case.kind}")
    return case


def _part(graph: Graph, medlam: Any) -> torch.nn.Module:
    from omlab_medlsam.network import Describe, Match, Position

    parts: Mapping[str, Any] = {"position": Position, "describe": Describe, "match": Match}
    return parts[graph.name](medlam).eval()  # type: ignore[no-any-return]


def phantom(side: int) -> np.ndarray:
    """A patch as MedLAM sees it, [side, side, side] float32: fat and muscle with a vessel and a bone; deterministic."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
    found = np.full((side,) * 3, 0.42)
    found[y**2 + x**2 < 0.8] = 0.56
    found[(y - 0.2) ** 2 + (x + 0.3) ** 2 < 0.04 + 0.01 * z] = 0.7
    found[(y + 0.5) ** 2 + x**2 + 0.3 * z**2 < 0.05] = 0.9
    found += 0.01 * np.random.default_rng(0).standard_normal(found.shape)
    return np.clip(found, 0, 1).astype(np.float32)
