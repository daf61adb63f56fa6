"""STU-Net as a model of omlab: a CT to a label map of 104 structures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cards import LabelCard, Variant
from omlab.cases import Case, Volume
from omlab.errors import InputError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Result, Segmentation
from omlab.vocabulary import Modality
from omlab_stunet import selection
from omlab_stunet.pipeline import Pipeline, check_options, statistics
from omlab_stunet.plan import SAMPLE, Plan

if TYPE_CHECKING:
    import torch

NET, WINDOW = "net", "window"
_SOURCES = ("omlab_stunet.network", "omlab_sdk.networks.steady")


class StuNet(Model):
    """The model ``stunet``."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``window``: a patch to the features before the last layer, that layer's weights, and a sample of logits by
        which engines are judged. The stitching applies the last layer (:class:`omlab.inference.sliding.Head`)."""
        plan, classes = Plan.of(variant.config), self._classes(variant)
        patch = plan.patch
        width = plan.dims[0]
        axes = "batch channel z y x"
        return (
            Graph(
                name=WINDOW,
                inputs=(TensorSpec("image", "float32", (1, 1, *patch), axes),),
                outputs=(
                    TensorSpec("features", "float32", (1, *patch, width), "batch z y x channel"),
                    TensorSpec("weight", "float32", (classes, width), "class feature"),
                    TensorSpec("bias", "float32", (classes,), "class"),
                    TensorSpec("logits", "float32", (1, classes, *(-(-n // SAMPLE) for n in patch)), axes),
                ),
                judge={"features": Judge.VALUES, "logits": Judge.LABELS},
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )

    def exports(self, variant: Variant) -> tuple[Graph, ...]:
        """``net``: a patch to logits, the whole network."""
        plan, classes = Plan.of(variant.config), self._classes(variant)
        axes = "batch channel z y x"
        return (
            Graph(
                name=NET,
                inputs=(TensorSpec("image", "float32", (1, 1, *plan.patch), axes),),
                outputs=(TensorSpec("logits", "float32", (1, classes, *plan.patch), axes),),
                judge=Judge.LABELS,
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network of ``graph`` with upstream's weights."""
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of stunet", install="omlab-stunet[convert]")
        from omlab_stunet.checkpoint import load

        if not variant.weights:
            from omlab_stunet.network import initialise

            return self.as_graph(graph, initialise(self._built(variant)))
        (asset,) = variant.weights
        return self.as_graph(graph, load(self._built(variant), files[asset.id], asset.key))

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network of ``graph`` as constructed."""
        return self.as_graph(graph, self._built(variant))

    def small(self, variant: Variant) -> Variant:
        """Few channels, a block a stage, a smaller patch on a coarser grid."""
        found = {key: value for key, value in variant.config.items() if key != "size"}
        found |= {"dims": [4, 8, 8, 12, 16, 16], "depth": [1] * 6, "patch": [48, 48, 64], "spacing_mm": [3.0] * 3}
        return attrs.evolve(variant, config=found)

    def recipe(
        self, variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Any = None, **changes: Any
    ) -> Any:
        """How it learns (:class:`omlab_sdk.segmenters.Tunable`): nnU-Net's recipe with all weights but the heads'."""
        from omlab_stunet import tuning

        return tuning.recipe(variant, files, outputs, state=state, **changes)

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, Any]) -> torch.nn.Module:
        """The network of ``graph`` with trained weights."""
        from omlab_sdk.checkpoints import load_into

        network = self._built(variant)
        load_into(network, state, name=f"the weights of '{self.card.name}'")
        return self.as_graph(graph, network)

    def _classes(self, variant: Variant) -> int:
        return max(label.value for label in variant.labels or self.card.labels) + 1

    def _built(self, variant: Variant) -> Any:
        from omlab_stunet.network import STUNet

        plan = Plan.of(variant.config)
        return STUNet(
            1, self._classes(variant), depth=plan.depth, dims=plan.dims, pool_op_kernel_sizes=plan.strides
        ).eval()  # fmt: skip

    @staticmethod
    def as_graph(graph: Graph, network: Any) -> Any:
        """A network of upstream's form as ``graph`` exports it; its norms are replaced in place."""
        from omlab_stunet.network import Windowed, steady

        steady(network)
        return Windowed(network).eval() if graph.name == WINDOW else network.eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """A body of ellipsoids with lungs, spine and organs, normalised like a scan."""
        yield {"image": phantom(graph.inputs[0].concrete()[2:])[None, None]}

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for an option out of its range, or one that names a structure or
        dataset that there is not."""
        check_options(options, self.card.name)
        self._chosen(self.card.labels, options)

    def _chosen(self, labels: Sequence[LabelCard], options: Mapping[str, Any]) -> selection.Selection:
        return selection.of(labels, options["structures"], options["dataset"], model=self.card.name)

    def predict(self, case: Case, context: Context) -> Result:
        """Label map on the grid of the scan, with volume and mean intensity of every structure.

        Options: see the card.

        Raises
        ------
        omlab.errors.InputError
            The case is no volume with an extent in all directions, or its spacing makes no sense.
        """
        if not isinstance(case, Volume):
            raise InputError(f"{case.name}: {self.card.name} takes a volume, found {case.kind}")
        labels = context.variant.labels or self.card.labels
        chosen = self._chosen(labels, context.options)
        plan, classes = Plan.of(context.variant.config), self._classes(context.variant)
        pipeline = Pipeline(plan, classes=classes, options=context.options)
        found, measurements = pipeline.run(case, context)
        with context.stage("restore"):
            chosen.apply(found)
            unit = "hu" if self.card.modality == (Modality.CT,) else "intensity"
            columns = statistics(found, case.voxels, [label.value for label in chosen.structures], unit)
        return Segmentation(
            labels=found, structures=chosen.structures, geometry=case.geometry, columns=columns,
            measurements=measurements, notes=self._notes(case),
        )  # fmt: skip

    def _notes(self, case: Volume) -> tuple[str, ...]:
        if self.card.modality != (Modality.CT,) or case.modality in ("", "CT"):
            return ()
        return (f"its modality is {case.modality}, and {self.card.name} knows CT alone: its labels may mean nothing",)


def phantom(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A trunk on ``shape`` voxels (z, y, x), normalised; deterministic."""
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32).reshape([-1 if a == d else 1 for a in range(3)])
               for d, n in enumerate(shape))  # fmt: skip

    def within(c: float, b: float, a: float, at: tuple[float, float, float] = (0, 0, 0)) -> NDArray[np.bool_]:
        return ((z - at[0]) / c) ** 2 + ((y - at[1]) / b) ** 2 + ((x - at[2]) / a) ** 2 < 1  # type: ignore[no-any-return]

    body = np.full(shape, -1000, np.float32)
    for value, size, at in (
        (-100, (3.0, 0.72, 0.92), (0, 0, 0)),  # fat
        (50, (3.0, 0.62, 0.82), (0, 0, 0)),  # muscle
        (-850, (0.55, 0.45, 0.28), (0.6, 0.05, 0.42)),  # lungs
        (-850, (0.55, 0.45, 0.28), (0.6, 0.05, -0.42)),
        (110, (0.35, 0.35, 0.40), (-0.35, 0.12, 0.35)),  # liver
        (120, (0.16, 0.18, 0.16), (-0.35, -0.1, -0.5)),  # spleen
        (160, (0.16, 0.10, 0.09), (-0.6, -0.25, 0.35)),  # kidneys
        (160, (0.16, 0.10, 0.09), (-0.6, -0.25, -0.35)),
        (180, (3.0, 0.06, 0.06), (0, -0.18, -0.05)),  # aorta
        (400, (3.0, 0.13, 0.12), (0, -0.40, 0)),  # spine
    ):
        body[within(*size, at)] = value
    body += 15 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return ((body - body.mean()) / body.std()).astype(np.float32)
