"""PathoDuet as a model of omlab: histology tile to embedding, or to classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omlab.cards import Variant
from omlab.cases import Case, Image
from omlab.errors import InputError, WeightsError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.results import Classification, Embedding, Result
from omlab.results.naming import class_names
from omlab_pathoduet import preprocess

if TYPE_CHECKING:
    import torch

SIDE, WIDTH = 224, 768
#: Less cannot show a cell at any magnification.
LEAST = 32
BATCH = {"batch": (1, 1, 64)}
_SOURCES = ("omlab_pathoduet.network", "omlab_pathoduet.checkpoint", "omlab_sdk.networks.vit")


class PathoDuet(Model):
    """The model ``pathoduet``. A variant's ``config`` may have a ``shape``: arguments of the network in place of
    ViT-B's."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: tiles to features; ``classifier``: tiles to logits."""
        image = TensorSpec("image", "float32", ("batch", 3, SIDE, SIDE), "batch RGB row column", BATCH)
        if _classifies(variant):
            # A user's own checkpoint decides how many classes there are, so that axis is open where none are named.
            classes: int | str = len(variant.labels) or "classes"
            ranges = BATCH | ({} if variant.labels else {"classes": (1, 2, 10000)})
            output = TensorSpec("logits", "float32", ("batch", classes), "batch class", ranges)
        else:
            width = _shape(variant).get("embed_dim", WIDTH)
            output = TensorSpec("feature", "float32", ("batch", width), "batch feature", BATCH)
        return (
            Graph(
                name="classifier" if _classifies(variant) else "encoder",
                inputs=(image,),
                outputs=(output,),
                judge=Judge.LOGITS if _classifies(variant) else Judge.EMBEDDING,
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The published network of the variant, as constructed."""
        from omlab_pathoduet.network import SIZES, Answer, VisionTransformer

        classes = (len(variant.labels) or 2) if _classifies(variant) else 0
        network = VisionTransformer(global_pool="avg", num_classes=classes, **SIZES["vit_base"] | _shape(variant))
        return Answer(network).eval()

    def small(self, variant: Variant) -> Variant:
        """Two narrow blocks in place of twelve."""
        return variant.configured(shape={"embed_dim": 96, "depth": 2, "num_heads": 4})

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published or fine-tuned weights.

        Raises
        ------
        omlab.errors.WeightsError
            The file does not fit the graph, or is of another model.
        """
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of pathoduet", install="omlab-pathoduet[convert]")
        from omlab_pathoduet.checkpoint import classifier, encoder
        from omlab_pathoduet.network import Answer

        (asset,) = variant.weights
        path = files[asset.id]
        network = classifier(path, asset) if _classifies(variant) else encoder(path, asset)
        side, width = network.patch_embed.image, network.pos_embed.shape[2]
        if side != SIDE:
            raise WeightsError(
                f"{path}: was trained on {side} pixels, expected {SIDE}", remedy="Train it at 224 pixels"
            )
        if not _classifies(variant) and width != WIDTH:
            raise WeightsError(
                f"{path}: has {width} features, expected {WIDTH}", remedy="Only the base size gives embeddings"
            )
        found, expected = getattr(network.head, "out_features", 0), len(variant.labels)
        if expected and found != expected:
            raise WeightsError(
                f"{path}: tells {found} classes apart, variant '{variant.name}' has {expected}",
                remedy="Use --variant classifier, which takes any number",
            )
        return Answer(network).eval()

    def predict(self, case: Case, context: Context) -> Result:
        """Embedding [768] of a pre-trained variant; probabilities of the classes of a fine-tuned one.

        Raises
        ------
        omlab.errors.InputError
            The case is no image, or so small that nothing can be seen.
        omlab.errors.UsageError
            The option ``names`` does not name every class.
        """
        if not isinstance(case, Image):
            raise InputError(f"{case.name}: pathoduet takes an image of a tile, found {case.kind}")
        rows, columns = case.pixels.shape[:2]
        if min(rows, columns) < LEAST:
            raise InputError(f"{case.name}: has {rows} x {columns} pixels, expected at least {LEAST} along each side")
        with context.stage("prepare"):
            prepare = preprocess.whole if context.options["view"] == "whole" else preprocess.evaluation
            image = prepare(case.rgb8(), SIDE)
        graph = self.graphs(context.variant)[0]
        with context.stage("network"):
            output = context.engines[graph.name]({"image": image[None]})[graph.outputs[0].name][0]
        if not _classifies(context.variant):
            return Embedding(vector=np.asarray(output, np.float32))
        names = class_names(len(output), context.variant.labels, context.options["names"])
        return Classification.of_logits(output, names)


def _classifies(variant: Variant) -> bool:
    return bool(variant.config["task"] == "classification")


def _shape(variant: Variant) -> dict[str, int]:
    return dict(variant.config.get("shape", {}))
