"""SAM-Med3D as a model of omlab: a scan and prompts to masks."""

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
from omlab.results import Segmentation
from omlab_sam_med3d.grid import normalised
from omlab_sam_med3d.predictor import ABSENT, BATCH, MOST_POINTS, PADDING
from omlab_sam_med3d.session import SamSession

if TYPE_CHECKING:
    import torch

    from omlab.prompts import Prompts

WIDTH = 384
#: No patient is so long; a scan that is has a wrong spacing.
LONGEST_MM = 4000.0
_SOURCES = (
    "omlab_sdk.networks.sam.encoder", "omlab_sdk.networks.sam.prompts", "omlab_sdk.networks.sam.decoder",
    "omlab_sdk.networks.sam.network", "omlab_sdk.networks.sam3d.encoder", "omlab_sdk.networks.sam3d.prompts",
    "omlab_sdk.networks.sam3d.network", "omlab_sam_med3d.checkpoint",
)  # fmt: skip


class SamMed3D(Model):
    """The model ``sam-med3d``. A variant's ``config`` may have a ``shape``: arguments of the image encoder in place of
    those of its ``size``."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: a cube to its embedding; ``decoder``: the embedding and any number of prompts to masks."""
        side = int(variant.config["side"])
        grid, low = side // 16, side // 4
        prompts = {"prompts": (1, 1, BATCH)}
        both = prompts | {"points": (1, 2, MOST_POINTS)}
        embedding = TensorSpec("image_embeddings", "float32", (1, WIDTH, grid, grid, grid), "batch feature x y z")
        masks = (low, low, low)
        encoder = Graph(
            name="encoder",
            inputs=(TensorSpec("image", "float32", (1, 1, side, side, side), "batch channel x y z"),),
            outputs=(embedding,),
            judge=Judge.VALUES,
            sources=_SOURCES,
            config=dict(variant.config),
        )
        decoder = Graph(
            name="decoder",
            inputs=(
                embedding,
                TensorSpec("point_coords", "float32", ("prompts", "points", 3), "prompt point (x, y, z)", both),
                TensorSpec("point_labels", "float32", ("prompts", "points"), "prompt point", both),
                TensorSpec("mask_input", "float32", ("prompts", 1, *masks), "prompt channel x y z", prompts),
                TensorSpec("has_mask_input", "float32", ("prompts",), "prompt", prompts),
            ),
            outputs=(
                TensorSpec("low_res_masks", "float32", ("prompts", 4, *masks), "prompt mask x y z", prompts),
                TensorSpec("iou_predictions", "float32", ("prompts", 4), "prompt mask", prompts),
            ),
            judge={"low_res_masks": Judge.MASKS, "iou_predictions": Judge.VALUES},
            sources=_SOURCES,
            config=dict(variant.config),
        )
        return encoder, decoder

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The part of the network that ``graph`` is of, as constructed."""
        from omlab_sam_med3d.network import Decoder, Encoder, Sam3d

        config = variant.config
        sam = Sam3d.of_size(str(config["size"]), img_size=int(config["side"]), **config.get("shape", {})).eval()
        return (Encoder if graph.name == "encoder" else Decoder)(sam).eval()

    def small(self, variant: Variant) -> Variant:
        """A cube of 64 voxels, and two narrow blocks, one of each kind of attention, in place of twelve."""
        shape = {"embed_dim": 64, "depth": 2, "num_heads": 4, "global_attn_indexes": [1]}
        return variant.configured(side=64, spacing_mm=3.0, shape=shape)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The part of the network that ``graph`` is of, with the published weights."""
        require("torch", needed_for="making the engine of sam-med3d", install="omlab-sam-med3d[convert]")
        from omlab_sam_med3d.checkpoint import load
        from omlab_sam_med3d.network import Decoder, Encoder

        (asset,) = variant.weights
        config = variant.config
        sam = load(files[asset.id], asset, size=str(config["size"]), img_size=int(config["side"]))
        return (Encoder if graph.name == "encoder" else Decoder)(sam).eval()

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """A phantom of a head; of the decoder one prompt, then several of different kinds."""
        side = int(variant.config["side"])
        if graph.name == "encoder":
            image = normalised(phantom(side))
            assert image is not None
            yield {"image": image[None, None]}
            return
        generator = np.random.default_rng(0)
        embedding = generator.standard_normal((1, WIDTH, *[side // 16] * 3), dtype=np.float32)
        mask = generator.standard_normal((1, 1, *[side // 4] * 3), dtype=np.float32)
        yield {
            "image_embeddings": embedding, "point_coords": np.float32([[[side // 2] * 3, [0] * 3]]),
            "point_labels": np.float32([[1, PADDING]]), "mask_input": np.zeros_like(mask),
            "has_mask_input": np.float32([1]),
        }  # fmt: skip
        places = generator.integers(0, side, (3, 3, 3)).astype(np.float32)
        kinds = np.float32([[1, 0, PADDING], [1, PADDING, ABSENT], [ABSENT] * 3])
        yield {
            "image_embeddings": embedding, "point_coords": places, "point_labels": kinds,
            "mask_input": np.repeat(mask, 3, axis=0), "has_mask_input": np.float32([1, 0, 1]),
        }  # fmt: skip

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` where nothing is asked, and for options out of their range."""
        threshold = float(options["threshold"])
        if not 0 < threshold < 1:
            raise UsageError(f"'{self.card.name}': option 'threshold' is between 0 and 1, found {threshold:g}")
        if prompts is None:
            raise UsageError(
                f"'{self.card.name}' segments what it is pointed at, and no prompt is given",
                remedy="Give --point, --mask or --prompts",
            )

    def open(self, case: Case, context: Context) -> SamSession:
        """Look at ``case``. The encoder sees a cube of it when something in it is asked for first.

        Raises
        ------
        omlab.errors.InputError
            It is no volume, or its spacing makes no sense.
        """
        if not isinstance(case, Volume):
            raise InputError(f"{case.name}: sam-med3d takes a volume, found {case.kind}")
        geometry = case.geometry
        longest = max(n * s for n, s in zip(geometry.shape, geometry.spacing_mm, strict=True))
        if longest > LONGEST_MM:
            raise InputError(
                f"{case.name}: is {longest / 1000:.3g} m long by its spacing", remedy="Correct the spacing in the file"
            )
        config = context.variant.config
        return SamSession(case, int(config["side"]), float(config["spacing_mm"]))

    def predict(self, case: Case, context: Context) -> Segmentation:
        """One structure for each label of the prompts, on the scan's own grid."""
        return self.open(case, context).answer(context)


def phantom(side: int = 128) -> np.ndarray:
    """A head of ellipsoids, [side, side, side] float32, 0 outside; deterministic."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x, y, z = axis[:, None, None], axis[None, :, None], axis[None, None, :]
    cube = np.zeros((side,) * 3, np.float32)
    for a, b, c, at_x, at_y, at_z, level in (
        (0.8, 0.95, 0.9, 0, 0, 0, 300), (0.74, 0.89, 0.84, 0, 0, 0, 60), (0.7, 0.85, 0.8, 0, 0, 0, 250),
        (0.55, 0.7, 0.65, 0, 0, 0.02, 330), (0.1, 0.35, 0.15, 0.15, 0, 0.1, 80), (0.1, 0.35, 0.15, -0.15, 0, 0.1, 80),
        (0.2, 0.22, 0.2, 0.35, 0.25, 0.3, 520),
    ):  # fmt: skip
        cube[((x - at_x) / a) ** 2 + ((y - at_y) / b) ** 2 + ((z - at_z) / c) ** 2 < 1] = level
    cube[cube > 0] += 12 * np.random.default_rng(0).standard_normal(int((cube > 0).sum()), dtype=np.float32)
    return cube
