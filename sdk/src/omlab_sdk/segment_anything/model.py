"""Any descendant of Segment Anything as a model of omlab: a picture and prompts to masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from omlab.cards import Variant
from omlab.cases import Case, Image
from omlab.errors import InputError, UsageError
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Segmentation
from omlab_sdk.segment_anything.frame import encoder_input, frame_of
from omlab_sdk.segment_anything.predictor import ABSENT, BATCH, MOST_POINTS, PADDING, Predictor
from omlab_sdk.segment_anything.session import SamSession

WIDTH = 256
#: Options -> least and greatest value that makes sense.
LIMITS: Mapping[str, tuple[float, float]] = {
    "rounds": (1, 64), "grid": (1, 256), "min_quality": (-1e6, 1e6), "min_stability": (0, 1), "overlap": (0, 1),
}  # fmt: skip
#: Image encoder for checks: two narrow blocks, one that attends within windows and one that attends to all.
SMALL: Mapping[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 4, "global_attn_indexes": [1]}
SOURCES = (
    "omlab_sdk.networks.sam.encoder", "omlab_sdk.networks.sam.prompts", "omlab_sdk.networks.sam.decoder",
    "omlab_sdk.networks.sam.network",
)  # fmt: skip


def sam_graphs(side: int, config: Mapping[str, Any], sources: tuple[str, ...]) -> tuple[Graph, Graph]:
    """``encoder``: a picture in a frame of ``side`` pixels to its embedding; ``decoder``: the embedding and any number
    of prompts to masks."""
    grid, low = side // 16, side // 4
    prompts = {"prompts": (1, 1, BATCH)}
    both = prompts | {"points": (1, 2, MOST_POINTS)}
    embedding = TensorSpec("image_embeddings", "float32", (1, WIDTH, grid, grid), "batch feature row column")
    encoder = Graph(
        name="encoder",
        inputs=(TensorSpec("image", "float32", (1, 3, side, side), "batch channel row column"),),
        outputs=(embedding,),
        judge=Judge.VALUES,
        sources=sources,
        config=dict(config),
    )
    decoder = Graph(
        name="decoder",
        inputs=(
            embedding,
            TensorSpec("point_coords", "float32", ("prompts", "points", 2), "prompt point (x, y)", both),
            TensorSpec("point_labels", "float32", ("prompts", "points"), "prompt point", both),
            TensorSpec("mask_input", "float32", ("prompts", 1, low, low), "prompt channel row column", prompts),
            TensorSpec("has_mask_input", "float32", ("prompts",), "prompt", prompts),
        ),
        outputs=(
            TensorSpec("low_res_masks", "float32", ("prompts", 4, low, low), "prompt mask row column", prompts),
            TensorSpec("iou_predictions", "float32", ("prompts", 4), "prompt mask", prompts),
        ),
        judge={"low_res_masks": Judge.MASKS, "iou_predictions": Judge.VALUES},
        sources=sources,
        config=dict(config),
    )
    return encoder, decoder


def sam_examples(graph: Graph, side: int, way: str) -> Iterator[dict[str, np.ndarray]]:
    """A phantom of a slice through the belly; of the decoder one prompt, then several of different kinds."""
    if graph.name == "encoder":
        picture = phantom()
        yield {"image": encoder_input(picture, frame_of(picture.shape[:2], side, way), way)}
        return
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((1, WIDTH, side // 16, side // 16), dtype=np.float32)
    centre = np.array([[[side / 2, side / 2], [0, 0]]], np.float32)
    mask = generator.random((1, 1, side // 4, side // 4), dtype=np.float32)
    yield {
        "image_embeddings": embedding, "point_coords": centre, "point_labels": np.float32([[1, PADDING]]),
        "mask_input": np.zeros_like(mask), "has_mask_input": np.float32([0]),
    }  # fmt: skip
    places = generator.uniform(0, side, (3, 3, 2)).astype(np.float32)
    kinds = np.float32([[1, 0, PADDING], [2, 3, ABSENT], [ABSENT] * 3])
    yield {
        "image_embeddings": embedding, "point_coords": places, "point_labels": kinds,
        "mask_input": np.repeat(mask, 3, axis=0), "has_mask_input": np.float32([0, 0, 1]),
    }  # fmt: skip


class SegmentAnything(Model):
    """A picture and prompts to masks.

    A variant's ``config`` has ``side`` (of the frame), ``way`` (:data:`omlab_sdk.segment_anything.frame.WAYS`), and may
    have ``feeds_logits`` (see :class:`omlab_sdk.segment_anything.predictor.Predictor`) and ``sigmoid_first``. The card
    has the options of :class:`omlab_sdk.segment_anything.session.SamSession` and ``preprocess``.

    Attributes
    ----------
    sources : modules that define the networks.
    """

    sources: tuple[str, ...] = SOURCES

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder`` and ``decoder``."""
        return sam_graphs(int(variant.config["side"]), variant.config, self.sources)

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """A phantom of a slice through the belly; of the decoder one prompt, then several of different kinds."""
        return sam_examples(graph, int(variant.config["side"]), str(variant.config["way"]))

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` where nothing is asked, and for options out of their range."""
        threshold = float(options["threshold"])
        if not 0 < threshold < 1:
            raise UsageError(f"'{self.card.name}': option 'threshold' is between 0 and 1, found {threshold:g}")
        for name, (low, high) in LIMITS.items():
            if not low <= options[name] <= high:
                raise UsageError(
                    f"'{self.card.name}': option '{name.replace('_', '-')}' is from {low:g} to {high:g}, "
                    f"found {options[name]:g}"
                )
        if options["everything"] and prompts is not None:
            raise UsageError(
                f"'{self.card.name}': prompts and 'everything' exclude each other", remedy="Leave one of them out"
            )
        if not options["everything"] and prompts is None:
            raise UsageError(
                f"'{self.card.name}' segments what it is pointed at, and no prompt is given",
                remedy="Give --point, --box, --mask or --prompts, or --everything",
            )

    def open(self, case: Case, context: Context) -> SamSession:
        """Show ``case`` to the encoder. Raises :class:`omlab.errors.InputError` if it is no picture."""
        if not isinstance(case, Image):
            raise InputError(f"{case.name}: {self.card.name} takes a picture, found {case.kind}")
        config = context.variant.config
        way = context.options["preprocess"]
        way = str(config["way"]) if way == "auto" else way
        with context.stage("prepare"):
            rgb = case.rgb8()
            frame = frame_of((rgb.shape[0], rgb.shape[1]), int(config["side"]), way)
            image = encoder_input(rgb, frame, way)
        encoder, decoder = context.engines["encoder"], context.engines["decoder"]  # made or loaded here, in no stage
        with context.stage("network"):
            embedding = encoder({"image": image})["image_embeddings"]
        predictor = Predictor(
            decoder,
            frame,
            embedding,
            feeds_logits=bool(config.get("feeds_logits")),
            sigmoid_first=bool(config.get("sigmoid_first")),
        )
        return SamSession(predictor)

    def predict(self, case: Case, context: Context) -> Segmentation:
        """One structure for each label of the prompts, on the picture's own pixels; of ``everything``, one for each
        thing that was found, the largest first."""
        return self.open(case, context).answer(context)


def phantom(rows: int = 240, columns: int = 320) -> np.ndarray:
    """A picture like a CT slice through a belly, [row, column, RGB] uint8; deterministic."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    grey = np.zeros((rows, columns))
    for across, down, at_x, at_y, level in (
        (0.9, 0.75, 0, 0, 90), (0.8, 0.65, 0, 0, 120), (0.35, 0.3, -0.4, -0.1, 170), (0.12, 0.2, 0.35, 0.15, 190),
        (0.1, 0.1, 0, 0.42, 250), (0.08, 0.08, 0.08, 0.2, 210), (0.2, 0.15, 0.35, -0.3, 40),
    ):  # fmt: skip
        grey[((x - at_x) / across) ** 2 + ((y - at_y) / down) ** 2 < 1] = level
    grey += 6 * np.random.default_rng(0).standard_normal(grey.shape)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
