"""BROW as a model of omlab: a patch to its embedding, a whole slide to the features of all its patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Image, Slide
from omlab.errors import InputError, UsageError, WeightsError, require
from omlab.files import stamp
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.results import Embedding, Result
from omlab_brow import preprocess

if TYPE_CHECKING:
    import torch

    from omlab.inference.patches import GridRules
    from omlab.prompts import Prompts

#: Less cannot show a cell at any magnification.
LEAST = 32
WIDTHS = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768, "vit_large": 1024}
BATCH = {"batch": (1, 4, 128)}
_SOURCES = ("omlab_brow.network", "omlab_brow.checkpoint", "omlab_sdk.networks.vit")


class Brow(Model):
    """The model ``brow``. A variant's ``config`` may have a ``depth`` in place of that of its ``size``."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: patches to features."""
        side = preprocess.SIDE
        image = TensorSpec("image", "float32", ("batch", 3, side, side), "batch RGB row column", BATCH)
        feature = TensorSpec("feature", "float32", ("batch", width_of(variant)), "batch feature", BATCH)
        return (
            Graph(
                name="encoder", inputs=(image,), outputs=(feature,), judge=Judge.EMBEDDING, sources=_SOURCES,
                config=dict(variant.config),
            ),
        )  # fmt: skip

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network of the variant's size, as constructed."""
        from omlab_brow.network import SIZES, VisionTransformer

        size = SIZES[variant.config["size"]]
        return VisionTransformer(**size | {"depth": variant.config.get("depth", size["depth"])}).eval()

    def small(self, variant: Variant) -> Variant:
        """Two blocks of the narrowest size."""
        return variant.configured(size="vit_tiny", depth=2)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the weights of a file.

        Raises
        ------
        omlab.errors.WeightsError
            The file is of another size, or of another model.
        """
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of brow", install="omlab-brow[convert]")
        from omlab_brow.checkpoint import encoder

        (asset,) = variant.weights
        network = encoder(files[asset.id], asset)
        width = network.cls_token.shape[2]
        if width != width_of(variant):
            raise WeightsError(
                f"{files[asset.id]}: has {width} features, variant '{variant.name}' has {width_of(variant)}",
                remedy="Choose the variant of its size with --variant",
            )
        # The graph takes patches of one size, so other tables are brought to it once, here.
        with require("torch", needed_for="making the engine of brow", install="omlab-brow[convert]").no_grad():
            table = network.positions(preprocess.SIDE, preprocess.SIDE)
            network.pos_embed = type(network.pos_embed)(table.clone())
        return network

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Refuse patches that have no centre of 224 pixels, and what no slide can be cut by."""
        rules = grid_rules(options)
        if rules.patch < preprocess.SIDE and options["view"] == "crop":
            raise UsageError(
                f"patches of {rules.patch} pixels have no centre of {preprocess.SIDE}",
                remedy="Take larger ones, or --view whole, which resizes them",
            )

    def predict(self, case: Case, context: Context) -> Result:
        """Embedding of an image; :class:`omlab.results.SlideFeatures` of a slide.

        Raises
        ------
        omlab.errors.InputError
            The case is of another kind, or so small that nothing can be seen; the slide has no tissue, is damaged, or
            does not tell its magnification where it is needed.
        """
        if isinstance(case, Slide):
            return self._slide(case, context)
        if not isinstance(case, Image):
            raise InputError(f"{case.name}: brow takes a slide or an image of a patch, found {case.kind}")
        rows, columns = case.pixels.shape[:2]
        least = preprocess.SIDE if context.options["view"] == "crop" else LEAST
        if min(rows, columns) < least:
            raise InputError(
                f"{case.name}: has {rows} x {columns} pixels, expected at least {least} along each side",
                remedy="With --view whole it is made larger" if least > LEAST <= min(rows, columns) else None,
            )
        with context.stage("prepare"):
            image = _prepare(context)(case.rgb8()[None])
        with context.stage("network"):
            return Embedding(vector=self._features(context, image)[0])

    def _features(self, context: Context, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(context.engines["encoder"]({"image": image})["feature"], np.float32)

    def _slide(self, slide: Slide, context: Context) -> Result:
        from omlab.inference.slides import extract, plan
        from omlab.inference.tissue import PRESETS

        options = context.options
        slide = slide.stated(mpp=options["slide_mpp"], magnification=options["slide_magnification"])
        with context.stage("prepare"):
            made = plan(
                slide, tissue=PRESETS[options["tissue"]], rules=grid_rules(options), level=options["level"],
                magnification=options["magnification"],
            )  # fmt: skip
        files = {name: stamp([path]) for name, path in context.files.items()}
        identity = {
            "model": [self.card.name, self.card.version, context.variant.name], "files": files,
            "view": options["view"], "engine": str(getattr(context.engines["encoder"], "info", "")),
        }  # fmt: skip
        return extract(
            slide, made, context, prepare=_prepare(context), compute=lambda image: self._features(context, image),
            width=width_of(context.variant), identity=identity, batch=min(options["batch"], BATCH["batch"][2]),
            readers=options["readers"],
        )  # fmt: skip


def width_of(variant: Variant) -> int:
    """Features of a patch."""
    return WIDTHS[variant.config["size"]]


def grid_rules(options: Mapping[str, Any]) -> GridRules:
    """How patches are laid out. Raises :class:`omlab.errors.UsageError`."""
    from omlab.inference.patches import GridRules

    region = None
    if options["region"]:
        try:
            left, top, right, bottom = (int(part) for part in options["region"].split(","))
        except ValueError:
            raise UsageError(
                f"'{options['region']}' is no region", remedy="Write LEFT,TOP,RIGHT,BOTTOM in pixels of level 0"
            ) from None
        if right <= left or bottom <= top:
            raise UsageError(f"the region {options['region']} is empty", remedy="Write LEFT,TOP,RIGHT,BOTTOM")
        region = (left, top, right, bottom)
    return GridRules(
        patch=options["patch_size"], step=options["step_size"] or options["patch_size"], inside=options["inside"],
        shift=options["shift"],
        padding=options["padding"], region=region, single=options["keep_single"],
    )  # fmt: skip


def _prepare(context: Context) -> Any:
    """Patches [n, row, column, 3] uint8 to the encoder's input."""
    if context.options["view"] == "crop":
        return preprocess.evaluation
    return lambda tiles: np.stack([preprocess.whole(tile) for tile in tiles])
