"""MIS-FM as a model of omlab: a volume to the label map of a network that was trained on from its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Volume
from omlab.errors import InputError, UsageError, require
from omlab.geometry import Turn
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.inference.segmenting import segment
from omlab.inference.windows import padding
from omlab.model import Context, Model
from omlab.results import Segmentation
from omlab.results.naming import structures_of
from omlab_mis_fm import intensity
from omlab_mis_fm.tiles import WINDOW, fitted, starts_of

if TYPE_CHECKING:
    import torch

    from omlab.prompts import Prompts
    from omlab_sdk.segmenters import Recipe

#: No patient is so long; a scan that is has a wrong spacing.
LONGEST_MM = 4000.0
_SOURCES = ("omlab_mis_fm.pctnet", "omlab_mis_fm.fmunet", "omlab_mis_fm.checkpoint", "omlab_sdk.networks.steady")


class MisFm(Model):
    """The model ``mis-fm``. A variant's ``config`` may have the ``window`` that the network sees and a ``shape``:
    arguments of the network in place of the published ones."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``net``: a window to logits. A user's own checkpoint decides how many classes there are."""
        window = window_of(variant)
        classes: int | str = _classes(variant) or "classes"
        axes = "batch channel D H W"
        return (
            Graph(
                name="net",
                inputs=(TensorSpec("image", "float32", (1, 1, *window), axes),),
                outputs=(
                    TensorSpec(
                        "logits", "float32", (1, classes, *window), axes,
                        {} if variant.labels else {"classes": (2, 2, 1000)},
                    ),
                ),
                judge=Judge.LABELS,
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )  # fmt: skip

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network as constructed."""
        from omlab_mis_fm.checkpoint import build

        network = build(
            str(variant.config["network"]), input_size=window_of(variant), mode=int(variant.config["mode"]),
            class_num=_classes(variant) or 2, **arguments_of(variant),
        )  # fmt: skip
        return self.as_graph(network)

    def small(self, variant: Variant) -> Variant:
        """Windows of an eighth of the volume, few channels."""
        shape: dict[str, Any] = {"feature_chns": [4, 8, 8, 16, 16]}
        if variant.config["network"] == "pctnet":
            shape["num_heads"] = [2, 2, 2]
        return variant.configured(window=[n // 2 for n in WINDOW], shape=shape)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the weights of ``variant``."""
        require("torch", needed_for="making the engine of mis-fm", install="omlab-mis-fm[convert]")
        from omlab_mis_fm.checkpoint import load

        if not variant.weights:
            from omlab_sdk.segmenters import beginning

            with beginning():
                return self.untrained(graph, variant)
        (asset,) = variant.weights
        network = load(
            files[asset.id], str(variant.config["network"]), input_size=window_of(variant),
            mode=int(variant.config["mode"]), key=asset.key,
        )  # fmt: skip
        channels = next(network.parameters()).shape[1]
        if channels != 1:
            raise UsageError(
                f"{files[asset.id]}: the network takes {channels} channels, a volume of omlab has one",
                remedy="Use omlab_mis_fm.checkpoint.load with your own arrays",
            )
        return self.as_graph(network)

    def recipe(
        self, variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Any = None, **changes: Any
    ) -> Recipe:
        """How it learns (:class:`omlab_sdk.segmenters.Tunable`): as in upstream's demonstration."""
        from omlab_mis_fm import tuning

        return tuning.recipe(variant, files, outputs, state=state, **changes)

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, Any]) -> torch.nn.Module:
        """The network of ``graph`` with trained weights."""
        from omlab_mis_fm.checkpoint import fitted

        return self.as_graph(
            fitted(
                state, str(variant.config["network"]), input_size=window_of(variant), mode=int(variant.config["mode"]),
                name=f"the weights of '{self.card.name}'",
            )
        )  # fmt: skip

    @staticmethod
    def as_graph(network: torch.nn.Module) -> torch.nn.Module:
        """As it is exported: instance norms are replaced in place by ones that every engine computes alike."""
        from omlab_sdk.networks.steady import steady

        return steady(network).eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """A phantom of a chest, normalised like a scan."""
        yield {"image": intensity.mean_std(phantom(graph.inputs[0].concrete()[2:])[None])[None]}

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for options out of their range."""
        if options["normalise"] == "min-max" and not options["low"] < options["high"]:
            raise UsageError(
                f"'{self.card.name}': option 'low' is below 'high', found {options['low']:g} and {options['high']:g}"
            )
        if not options["memory"] > 0:
            raise UsageError(f"'{self.card.name}': option 'memory' is in GB and above 0, found {options['memory']:g}")

    def predict(self, case: Case, context: Context) -> Segmentation:
        """Label map on the grid of the scan.

        Raises
        ------
        omlab.errors.InputError
            The case is no volume, or its spacing makes no sense.
        omlab.errors.UsageError
            An option is out of its range, or ``names`` does not name every class.
        """
        if not isinstance(case, Volume):
            raise InputError(f"{case.name}: mis-fm takes a volume, found {case.kind}")
        options = context.options
        longest = max(n * s for n, s in zip(case.voxels.shape, case.geometry.spacing_mm, strict=True))
        if longest > LONGEST_MM:
            raise InputError(
                f"{case.name}: is {longest / 1000:.3g} m long by its spacing", remedy="Correct the spacing in the file"
            )
        with context.stage("prepare"):
            codes = case.geometry.orientation if options["orientation"] == "file" else options["orientation"]
            turn = Turn.to(case.geometry, codes)
            volume = self._normalised(turn.apply(case.voxels).T[None], options)
        window = window_of(context.variant)
        run = _Runner(context.engines["net"], window)  # made or loaded here, which is no part of the stage
        shape = volume.shape[1:]
        starts = starts_of(shape, *fitted(shape, window, [n // 2 for n in window]))
        with context.stage("restore"):
            # How many classes there are is the checkpoint's matter: the first window tells it.
            classes = run.classes(volume)
            # The card's one label is of networks with background and foreground.
            known = self.card.labels if classes == 2 and not context.variant.labels else context.variant.labels
            structures = structures_of(classes, known, options["names"])
            labels = np.zeros_like(case.voxels, dtype=np.uint8 if classes <= 256 else np.uint16)
            report = segment(
                volume, turn.apply(labels).T, window, run, classes=classes, softmax=False, starts=starts,
                mirror=(1, 2) if options["flips"] else (), memory=options["memory"] * 1e9,
                done=lambda done, total: context.progress("network", done, total, "windows"),
            )  # fmt: skip
        context.share_out(run.seconds)
        return Segmentation(
            labels=labels, structures=structures, geometry=case.geometry,
            measurements={"windows": float(report.windows)},
        )  # fmt: skip

    def _normalised(self, volume: NDArray[Any], options: Mapping[str, Any]) -> NDArray[np.float32]:
        if options["normalise"] == "min-max":
            return intensity.min_max(volume, (float(options["low"]), float(options["high"])))
        above = options["above"]
        if above is None:
            return intensity.mean_std(volume)
        return intensity.mean_std(volume, above=float(above), random=np.random.RandomState(0))


class _Runner:
    """An engine as the stitching calls it; keeps the time."""

    def __init__(self, engine: Callable[..., Mapping[str, NDArray[Any]]], window: tuple[int, ...]) -> None:
        self.seconds = 0.0
        self._engine, self._window = engine, window
        self._first: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._first is not None and np.array_equal(windows, self._first[0]):
            return self._first[1]
        start = time.perf_counter()
        found = self._engine({"image": np.ascontiguousarray(windows)})["logits"]
        self.seconds += time.perf_counter() - start
        return found

    def classes(self, volume: NDArray[np.float32]) -> int:
        """How many scores the first window of ``volume`` gets; its answer is kept for the stitching."""
        padded = np.pad(volume, ((0, 0), *padding(volume.shape[1:], self._window)))
        first = np.ascontiguousarray(padded[(None, slice(None), *(slice(n) for n in self._window))])
        found = self(first)
        self._first = first, found
        return int(found.shape[1])


def window_of(variant: Variant) -> tuple[int, ...]:
    """Voxels (D, H, W) of what a variant's network sees; windows lie half of that apart."""
    return tuple(int(n) for n in variant.config.get("window", WINDOW))


def arguments_of(variant: Variant) -> dict[str, Any]:
    """Constructor arguments of a variant's network, as far as the card tells them."""
    published = {} if variant.config["network"] == "fmunet" else {"feature_chns": (24, 48, 128, 256, 512)}
    return published | dict(variant.config.get("shape", {}))


def _classes(variant: Variant) -> int:
    """How many classes a variant's labels make, the background counted; 0 where a checkpoint tells it."""
    return max((label.value for label in variant.labels), default=-1) + 1


def phantom(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A chest of ellipsoids on ``shape`` voxels (D, H, W), in Hounsfield units; deterministic."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    found = np.full(shape, -1000, np.float32)
    for c, b, a, at_z, at_y, at_x, value in (
        (3.0, 0.75, 0.95, 0, 0, 0, -90), (3.0, 0.66, 0.86, 0, 0, 0, 45), (0.9, 0.5, 0.32, 0.1, 0, 0.45, -840),
        (0.9, 0.5, 0.32, 0.1, 0, -0.45, -840), (0.5, 0.3, 0.3, -0.2, -0.1, 0.05, 140), (3.0, 0.1, 0.1, 0, 0.4, 0, 350),
    ):  # fmt: skip
        found[((z - at_z) / c) ** 2 + ((y - at_y) / b) ** 2 + ((x - at_x) / a) ** 2 < 1] = value
    found += 15 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return found
