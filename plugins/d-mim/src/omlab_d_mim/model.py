"""D-MIM as a model of omlab: ultrasound image to embedding, classes, or a label map."""

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
from omlab.inference.resampling import along, matrix
from omlab.model import Context, Model
from omlab.results import Classification, Embedding, Result, Segmentation
from omlab.results.naming import class_names, structures_of

if TYPE_CHECKING:
    import torch

    from omlab_sdk.segmenters import Recipe

WIDTH = 768
#: Pixels along a side that upstream's networks take, by task.
SIDES = {"embedding": 224, "classification": 224, "segmentation": 512}
#: Less cannot show a structure.
LEAST = 32
#: Of U-Net's probabilities.
THRESHOLD = 0.5
_SOURCES = (
    "omlab_d_mim.network", "omlab_d_mim.segmenter", "omlab_d_mim.checkpoint", "omlab_sdk.networks.vit",
    "omlab_sdk.networks.beit", "omlab_sdk.networks.upernet",
)  # fmt: skip


class DMim(Model):
    """The model ``d-mim``. A variant's ``config`` may have the ``side`` of what the network sees and a ``shape``:
    arguments of the encoder in place of those of the base size."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: images to features; ``classifier``: to logits; ``segmenter``: to the probability of each pixel
        at half the size (U-Net, U-Net++), or a window to scores of its pixels (UPerNet)."""
        task = variant.config["task"]
        side = side_of(variant)
        ranges = {"batch": (1, 1, 8 if task == "segmentation" else 64)}
        # A user's own checkpoint decides how many classes there are.
        open_ranges = ranges | {"classes": (1, 2, 10000)}
        name, judge = "segmenter", Judge.LABELS
        if task == "embedding":
            name, judge = "encoder", Judge.EMBEDDING
            output = TensorSpec("feature", "float32", ("batch", _width(variant)), "batch feature", ranges)
        elif task == "classification":
            name, judge = "classifier", Judge.LOGITS
            output = TensorSpec("logits", "float32", ("batch", "classes"), "batch class", open_ranges)
        elif variant.config["network"] == "upernet":
            shape = ("batch", "classes", side, side)
            output = TensorSpec("scores", "float32", shape, "batch class row column", open_ranges)
        else:
            judge, shape = Judge.PROBABILITY, ("batch", 1, side // 2, side // 2)
            output = TensorSpec("probability", "float32", shape, "batch class row column", ranges)
        image = TensorSpec("image", "float32", ("batch", 3, side, side), "batch channel row column", ranges)
        config = {key: value for key, value in variant.config.items() if key != "blur"}
        return (Graph(name=name, inputs=(image,), outputs=(output,), judge=judge, sources=_SOURCES, config=config),)

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """Upstream's network of the variant, as constructed."""
        return untrained(variant)

    def small(self, variant: Variant) -> Variant:
        """What the network sees is 128 pixels wide; narrow, few blocks."""
        config = variant.config
        if config.get("encoder") == "mae":  # U-Net takes four of its blocks
            shape: dict[str, Any] = {"embed_dim": 48, "depth": 12 if config["task"] == "segmentation" else 2}
        else:
            shape = {"embed_dim": [16, 24, 48], "depth": [1, 1, 2]}
            if config.get("network") == "upernet":
                shape |= {"channels": 32, "auxiliary_channels": 16}
        return variant.configured(side=128, shape={"num_heads": 4, **shape})

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published or the user's weights.

        Raises
        ------
        omlab.errors.WeightsError
            The file does not fit the variant, or is of another model.
        """
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of d-mim", install="omlab-d-mim[convert]")
        from omlab_d_mim import checkpoint

        (asset,) = variant.weights
        path, config = files[asset.id], variant.config
        task = config["task"]
        if task == "segmentation":
            network = checkpoint.segmenter(path, asset)
            checkpoint.check_variant(network, variant, str(path))
            return network
        read = checkpoint.embedder if task == "embedding" else checkpoint.classifier
        encoding = read(path, asset)
        encoder = checkpoint.encoder_of(encoding)
        if config.get("encoder", encoder) != encoder:
            raise WeightsError(
                f"{path}: holds the encoder {encoder}, expected {config['encoder']}",
                remedy="Choose the variant of this encoder",
            )
        checkpoint.check_side(encoding.side, SIDES[task], str(path))
        width = encoding.pos_embed.shape[2]
        if task == "embedding" and width != WIDTH:
            raise WeightsError(
                f"{path}: has features of {width} numbers, expected {WIDTH}",
                remedy="Embeddings are of the base size, the published one; other sizes run as classifiers",
            )
        return encoding

    def recipe(
        self, variant: Variant, files: Mapping[str, Path], outputs: int, *, state: Any = None, **changes: Any
    ) -> Recipe:
        """How a segmenter learns (:class:`omlab_sdk.segmenters.Tunable`): upstream's recipes."""
        from omlab_d_mim import tuning

        return tuning.recipe(variant, files, outputs, state=state, **changes)

    def tuned(self, graph: Graph, variant: Variant, state: Mapping[str, Any]) -> torch.nn.Module:
        """The segmenter with trained weights."""
        from omlab_d_mim.checkpoint import segmenter_of

        return segmenter_of(state, f"the weights of '{self.card.name}'").eval()

    def predict(self, case: Case, context: Context) -> Result:
        """Embedding [768], probabilities of the classes, or a label map on the grid of the image.

        Raises
        ------
        omlab.errors.InputError
            The case is no image, or so small that nothing can be seen.
        omlab.errors.UsageError
            The option ``names`` does not name every class.
        """
        from omlab_d_mim import preprocess

        if not isinstance(case, Image):
            raise InputError(f"{case.name}: d-mim takes an image, found {case.kind}")
        rows, columns = case.pixels.shape[:2]
        if min(rows, columns) < LEAST:
            raise InputError(f"{case.name}: has {rows} x {columns} pixels, expected at least {LEAST} along each side")
        config, names = context.variant.config, context.options["names"]
        blur = context.options["blur"]
        with context.stage("prepare"):
            rgb = case.rgb8()
            if blur == "yes" or (blur == "auto" and config["blur"]):
                rgb = preprocess.as_trained(rgb)
        if config["task"] == "segmentation":
            segment = self._windows if config["network"] == "upernet" else self._whole
            labels, found = segment(rgb, context)
            # The card's one label is of segmenters with background and foreground; other classes are the user's own.
            labelled = context.variant.labels or (self.card.labels if found == 2 else ())
            return Segmentation(labels=labels, structures=structures_of(found, labelled, names))
        with context.stage("prepare"):
            image = preprocess.classification(rgb, side_of(context.variant))[None]
        with context.stage("network"):
            if config["task"] == "embedding":
                return Embedding(vector=np.asarray(context.engines["encoder"]({"image": image})["feature"][0]))
            logits = context.engines["classifier"]({"image": image})["logits"][0]
        return Classification.of_logits(logits, class_names(len(logits), (), names))

    def _whole(self, rgb: NDArray[np.uint8], context: Context) -> tuple[NDArray[np.uint8], int]:
        """(label map, classes) of U-Net or U-Net++."""
        from omlab_d_mim import preprocess

        with context.stage("prepare"):
            image = preprocess.segmentation(rgb, side_of(context.variant))
        with context.stage("network"):
            probability = context.engines["segmenter"]({"image": image[None]})["probability"][0, 0]
        with context.stage("restore"):
            return foreground(np.asarray(probability), *rgb.shape[:2]), 2

    def _windows(self, rgb: NDArray[np.uint8], context: Context) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
        """(label map, classes) of UPerNet, whose scores are averaged over windows."""
        from omlab.inference.segmenting import segment
        from omlab_d_mim import preprocess

        side, classes = side_of(context.variant), 0
        engine = context.engines["segmenter"]

        def network(windows: NDArray[np.float32]) -> NDArray[np.float32]:
            nonlocal classes
            scores = np.asarray(engine({"image": np.ascontiguousarray(windows[:, :, 0])})["scores"], np.float32)
            classes = scores.shape[1]
            return scores[:, :, None]

        with context.stage("prepare"):
            image = preprocess.fitted(rgb)
        stride = side * 2 // 3
        starts = ((0,), *(preprocess.starts(max(length, side), side, stride) for length in image.shape[1:]))
        labels = np.zeros((1, *rgb.shape[:2]), np.uint16)
        # Names say how many classes to expect; the guess only bears on memory.
        guess = max(2, len([name for name in (context.options["names"] or "").split(",") if name]))
        with context.stage("network"):
            segment(
                image[:, None], labels, (1, side, side), network, classes=guess, starts=starts, weighted=False,
                softmax=False, done=lambda done, total: context.progress("network", done, total, "windows"),
            )  # fmt: skip
        return labels[0].astype(np.uint8) if classes <= 256 else labels[0], classes


def foreground(probability: NDArray[np.floating[Any]], rows: int, columns: int) -> NDArray[np.uint8]:
    """[row, column] probabilities to 0 and 1 on another grid of the same picture: bilinear, then the threshold."""
    on_rows = along(probability, matrix(probability.shape[0], rows, 1), 0, np.float32)
    found = along(on_rows, matrix(probability.shape[1], columns, 1), 1, np.float32)
    return (found >= THRESHOLD).astype(np.uint8)


def side_of(variant: Variant) -> int:
    """Pixels along a side that a variant's network takes."""
    return int(variant.config.get("side", SIDES[variant.config["task"]]))


def _width(variant: Variant) -> int:
    width = variant.config.get("shape", {}).get("embed_dim", WIDTH)
    return int(width if isinstance(width, int) else width[-1])


def untrained(variant: Variant, *, classes: int | None = None) -> torch.nn.Module:
    """Upstream's network of a variant, as constructed; of so many ``classes``, where it has any."""
    from omlab_d_mim.network import CONV_SIZES, VIT_SIZES, ConvViT, VisionTransformer
    from omlab_d_mim.segmenter import unet, upernet

    config, side = variant.config, side_of(variant)
    shape = config.get("shape", {})
    if config["task"] == "segmentation":
        if config["network"] == "upernet":
            return upernet(classes or 2, img_size=side, **shape).eval()
        nested = config["network"] == "unetpp"
        return unet(config["encoder"], nested=nested, classes=classes or 1, img_size=side, **shape).eval()
    classes = 0 if config["task"] == "embedding" else classes or 2
    if config.get("encoder") == "mae":
        return VisionTransformer(num_classes=classes, img_size=side, **VIT_SIZES["base"] | shape).eval()
    sides = (side, side // 4, side // 8)
    return ConvViT(num_classes=classes, img_size=sides, **CONV_SIZES["base"] | shape).eval()
