"""RETFound as a model of omlab: picture to embedding, or to classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omlab.cards import Variant
from omlab.cases import Case, Image
from omlab.errors import InputError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.results import Classification, Embedding, Result
from omlab_retfound import preprocess

if TYPE_CHECKING:
    import torch

SIDE, WIDTH = 224, 1024
BATCH = {"batch": (1, 1, 32)}
_SOURCES = ("omlab_retfound.network", "omlab_retfound.checkpoint", "omlab_retfound.tables")


class RetFound(Model):
    """The model ``retfound``. A variant's ``config`` may have a ``shape``: arguments of the network in place of
    ViT-L's."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: images to features; ``classifier``: images to logits."""
        classifies = variant.config["family"] == "classifier"
        image = TensorSpec("image", "float32", ("batch", 3, SIDE, SIDE), "batch RGB row column", BATCH)
        if classifies:
            # A user's own checkpoint decides how many classes there are, so that axis is open where none are named.
            classes: int | str = len(variant.labels) or "classes"
            ranges = BATCH | ({} if variant.labels else {"classes": (1, 2, 10000)})
            output = TensorSpec("logits", "float32", ("batch", classes), "batch class", ranges)
        else:
            output = TensorSpec("feature", "float32", ("batch", _shape(variant)["embed_dim"]), "batch feature", BATCH)
        return (
            Graph(
                name="classifier" if classifies else "encoder",
                inputs=(image,),
                outputs=(output,),
                judge=Judge.LOGITS if classifies else Judge.EMBEDDING,
                sources=_SOURCES,
                config=dict(variant.config),
            ),
        )

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """ViT-L of the variant's shape, as constructed."""
        from omlab_retfound.network import Embedder, VisionTransformer

        family, shape = variant.config["family"], _shape(variant)
        if family == "classifier":
            return VisionTransformer(
                num_classes=len(variant.labels) or 2, global_pool=True,
                double_norm=variant.config["norm"] == "double", **shape,
            ).eval()  # fmt: skip
        dinov2 = family == "dinov2"
        return Embedder(
            VisionTransformer(
                patch_size=14 if dinov2 else 16, num_classes=0, global_pool=not dinov2,
                init_values=1.0 if dinov2 else None, **shape,
            )
        ).eval()  # fmt: skip

    def small(self, variant: Variant) -> Variant:
        """Two narrow blocks in place of 24."""
        return variant.configured(shape={"embed_dim": 64, "depth": 2, "num_heads": 4})

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published or fine-tuned weights."""
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of retfound", install="omlab-retfound[convert]")
        from omlab_retfound.checkpoint import classifier, encoder
        from omlab_retfound.network import Embedder

        (asset,) = variant.weights
        family = variant.config["family"]
        if family == "classifier":
            return classifier(files["net"], asset, double_norm=variant.config["norm"] == "double")
        return Embedder(encoder(files["net"], asset, family)).eval()

    def predict(self, case: Case, context: Context) -> Result:
        """Embedding [1024] of a pre-trained variant; probabilities of the classes of a fine-tuned one.

        Raises
        ------
        omlab.errors.InputError
            The case is no image, or so small that nothing can be seen.
        """
        if not isinstance(case, Image):
            raise InputError(f"{case.name}: retfound takes an image, found {case.kind}")
        rows, columns = case.pixels.shape[:2]
        if min(rows, columns) < 32:
            raise InputError(f"{case.name}: has {rows} x {columns} pixels, expected at least 32 along each side")
        classifies = context.variant.config["family"] == "classifier"
        how = context.options["preprocess"]
        if how == "auto":
            how = "evaluation" if classifies else "zscore"
        with context.stage("prepare"):
            rgb = case.rgb8()
            if how == "zscore":
                image = np.ascontiguousarray(preprocess.zscore(rgb, SIDE).transpose(2, 0, 1), dtype=np.float32)
            else:
                image = preprocess.evaluation(rgb, SIDE)
        graph = self.graphs(context.variant)[0]
        with context.stage("network"):
            output = context.engines[graph.name]({"image": image[None]})[graph.outputs[0].name][0]
        if not classifies:
            return Embedding(vector=np.asarray(output, np.float32))
        exponents = np.exp(output - output.max())
        labels = context.variant.labels
        names = tuple(label.name for label in labels) or tuple(f"class {i}" for i in range(len(output)))
        return Classification(classes=names, probabilities=(exponents / exponents.sum()).astype(np.float32))


def _shape(variant: Variant) -> dict[str, int]:
    """Width, depth and heads of a variant's network: ViT-L's unless it says otherwise."""
    return {"embed_dim": WIDTH, "depth": 24, "num_heads": 16} | dict(variant.config.get("shape", {}))
