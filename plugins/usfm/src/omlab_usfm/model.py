"""USFM as a model of omlab: ultrasound image to embedding, classes, or a label map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Image
from omlab.errors import InputError, WeightsError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.results import Classification, Embedding, Result, Segmentation
from omlab.results.naming import class_names, structures_of
from omlab_usfm import preprocess

if TYPE_CHECKING:
    import torch

    from omlab_sdk.segmenters import Recipe

WIDTH = 768
#: Pixels along a side that the published networks take, by task.
SIDES = {"embedding": 224, "classification": 224, "segmentation": 512}
#: Less cannot show a structure.
LEAST = 32
#: Task -> (graph, output), and how engines are judged by it.
_GRAPHS = {
    "embedding": ("encoder", "feature", Judge.EMBEDDING),
    "classification": ("classifier", "logits", Judge.LOGITS),
    "segmentation": ("segmenter", "scores", Judge.LABELS),
}
_SOURCES = (
    "omlab_usfm.network", "omlab_usfm.segmenter", "omlab_usfm.checkpoint", "omlab_usfm.tables",
    "omlab_sdk.networks.vit", "omlab_sdk.networks.beit", "omlab_sdk.networks.upernet",
)  # fmt: skip


class Usfm(Model):
    """The model ``usfm``. A variant's ``config`` may have the ``side`` of what the network sees and a ``shape``:
    arguments of the transformer in place of ViT-B's."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: images to features; ``classifier``: to logits; ``segmenter``: to scores of every pixel."""
        task = variant.config["task"]
        side = side_of(variant)
        name, output, judge = _GRAPHS[task]
        ranges = {"batch": (1, 1, 8 if task == "segmentation" else 64)}
        # A user's own checkpoint decides how many classes there are, so that axis is open where none are named.
        classes: int | str = classes_of(variant) or "classes"
        open_ranges = ranges | ({} if variant.labels else {"classes": (1, 2, 10000)})
        shapes: dict[str, tuple[tuple[int | str, ...], str]] = {
            "embedding": (("batch", variant.config.get("shape", {}).get("embed_dim", WIDTH)), "batch feature"),
            "classification": (("batch", classes), "batch class"),
            "segmentation": (("batch", classes, side, side), "batch class row column"),
        }
        shape, axes = shapes[task]
        return (
            Graph(
                name=name,
                inputs=(TensorSpec("image", "float32", ("batch", 3, side, side), "batch RGB row column", ranges),),
                outputs=(TensorSpec(output, "float32", shape, axes, ranges if task == "embedding" else open_ranges),),
                judge=judge,
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The published network of the variant, as constructed."""
        from omlab_usfm.network import BASE, TRAINED, VisionTransformer
        from omlab_usfm.segmenter import segvit, upernet

        task, classes = variant.config["task"], classes_of(variant) or 2
        side, shape = side_of(variant), variant.config.get("shape", {})
        if task == "segmentation":
            build = segvit if variant.config["head"] == "segvit" else upernet
            return build(classes, img_size=side, **shape).eval()  # type: ignore[operator]
        return VisionTransformer(
            num_classes=0 if task == "embedding" else classes, use_rel_pos_bias=True, img_size=side,
            use_mean_pooling=variant.config.get("pooling", "mean") == "mean", **BASE | TRAINED | shape,
        ).eval()  # fmt: skip

    def small(self, variant: Variant) -> Variant:
        """What the network sees is 128 pixels wide; narrow blocks, and no more than are needed."""
        shape: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 4}
        if variant.config["task"] == "segmentation":
            shape["out_indices"] = [0, 1, 1] if variant.config["head"] == "segvit" else [0, 0, 1, 1]
        return variant.configured(side=128, shape=shape)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published or fine-tuned weights.

        Raises
        ------
        omlab.errors.WeightsError
            The file does not fit the variant, or is of another model.
        """
        for module in ("torch", "omlab_sdk", "scipy"):
            require(module, needed_for="making the engine of usfm", install="omlab-usfm[convert]")
        from omlab_usfm import checkpoint

        (asset,) = variant.weights
        path, task = files[asset.id], variant.config["task"]
        network: Any
        if task == "segmentation":
            network = checkpoint.segmenter(path, asset)
            found, grid = type(network).__name__.lower(), network.backbone.grid
            if found != variant.config["head"]:
                raise WeightsError(
                    f"{path}: holds the other segmentation network, {type(network).__name__}",
                    remedy=f"Use --variant {found}",
                )
        elif task == "classification":
            network = checkpoint.classifier(path, asset)
            grid = network.grid
        else:
            network = checkpoint.encoder(path, asset, mean=variant.config["pooling"] == "mean")
            grid = network.grid
        if grid * 16 != SIDES[task]:
            raise WeightsError(
                f"{path}: was trained on {grid * 16} pixels, expected {SIDES[task]}",
                remedy=f"Train it at {SIDES[task]} pixels, upstream's published configuration",
            )
        return network  # type: ignore[no-any-return]

    def predict(self, case: Case, context: Context) -> Result:
        """Embedding [768], probabilities of the classes, or a label map on the grid of the image.

        Raises
        ------
        omlab.errors.InputError
            The case is no image, or so small that nothing can be seen.
        omlab.errors.UsageError
            The option ``names`` does not name every class.
        """
        if not isinstance(case, Image):
            raise InputError(f"{case.name}: usfm takes an image, found {case.kind}")
        rows, columns = case.pixels.shape[:2]
        if min(rows, columns) < LEAST:
            raise InputError(f"{case.name}: has {rows} x {columns} pixels, expected at least {LEAST} along each side")
        variant = context.variant
        task = variant.config["task"]
        with context.stage("prepare"):
            prepare = preprocess.segmentation if task == "segmentation" else preprocess.classification
            image = prepare(case.rgb8(), side_of(variant))
        name, wanted, _ = _GRAPHS[task]
        with context.stage("network"):
            output = context.engines[name]({"image": image[None]})[wanted][0]
        if task == "embedding":
            return Embedding(vector=np.asarray(output, np.float32))
        # The card's one label is of segmenters with background and foreground; other classes are the user's own.
        known = variant.labels or (self.card.labels if task == "segmentation" and len(output) == 2 else ())
        given = context.options["names"]
        if task == "classification":
            return Classification.of_logits(output, class_names(len(output), known, given))
        structures = structures_of(len(output), known, given)
        with context.stage("restore"):
            labels = best_on(output, rows, columns)
        return Segmentation(labels=labels, structures=structures)

    def recipe(
        self, variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Any = None, **changes: Any
    ) -> Recipe:
        """How it learns to segment (:class:`omlab_sdk.segmenters.Tunable`): upstream's optimiser, rate and losses."""
        from omlab_usfm import tuning

        return tuning.recipe(variant, files, outputs, state=state, **changes)

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, Any]) -> torch.nn.Module:
        """The segmenter with trained weights."""
        from omlab_usfm import checkpoint

        name = f"the weights of '{self.card.name}'"
        return checkpoint.segmenter_of(state, name, **variant.config.get("shape", {}))


def classes_of(variant: Variant) -> int:
    """How many classes a variant's labels make, of a segmenter with the background; 0 where a checkpoint tells it."""
    if variant.config["task"] != "segmentation":
        return len(variant.labels)
    return max((label.value for label in variant.labels), default=-1) + 1


def side_of(variant: Variant) -> int:
    """Pixels along a side that a variant's network takes."""
    return int(variant.config.get("side", SIDES[variant.config["task"]]))


def best_on(scores: NDArray[np.floating[Any]], rows: int, columns: int) -> NDArray[np.unsignedinteger[Any]]:
    """[class, row, column] scores to the best class of each pixel of another grid, bilinear; one class at a time, so
    that the scores of all classes never exist at the image's own size."""
    from PIL import Image as Pillow

    labels = np.zeros((rows, columns), np.uint8 if len(scores) <= 256 else np.uint16)
    best = np.full((rows, columns), -np.inf, np.float32)
    for value, score in enumerate(scores):
        picture = Pillow.fromarray(np.ascontiguousarray(score, dtype=np.float32))
        found = np.asarray(picture.resize((columns, rows), Pillow.Resampling.BILINEAR))
        better = found > best
        labels[better] = value
        best[better] = found[better]
    return labels
