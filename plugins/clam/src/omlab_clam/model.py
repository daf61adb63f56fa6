"""Slide classifiers as models of omlab: a slide, or a file of features of its patches, to classes and a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from omlab.cards import ModelCard, Variant
from omlab.cases import Case, PatchFeatures, Slide
from omlab.errors import InputError, UsageError, WeightsError, require
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.loading import LoadedModel, options_of
from omlab.model import Context, Model
from omlab.results import Classification, Result, SlideFeatures
from omlab.results.naming import class_names
from omlab.results.slide_features import write_h5
from omlab_clam import looking

if TYPE_CHECKING:
    import torch

    from omlab.prompts import Prompts

HEAD = "head.safetensors"
PATCHES = {"patches": (1, 512, 200_000)}
_SOURCES = ("omlab_clam.network", "omlab_clam.checkpoint", "omlab_clam.losses")
#: Options that are the encoder's, where it has them.
PASSED = (
    "tissue", "patch_size", "level", "magnification", "slide_magnification", "slide_mpp", "keep_single", "batch",
    "readers",
)  # fmt: skip


def classifier_graph(features: int, classes: int | str, config: Mapping[str, Any]) -> Graph:
    """``classifier``: a bag to the logits of the slide and the scores of its patches."""
    ranges = {} if isinstance(classes, int) else {"classes": (1, 2, 10_000)}
    return Graph(
        name="classifier",
        inputs=(TensorSpec("bag", "float32", ("patches", features), "patch feature", PATCHES),),
        outputs=(
            TensorSpec("logits", "float32", (1, classes), "slide class", ranges),
            TensorSpec("scores", "float32", ("rows", "patches"), "class patch", PATCHES | {"rows": (1, 1, 10_000)}),
        ),
        judge={"logits": Judge.LOGITS, "scores": Judge.VALUES}, sources=_SOURCES, config=dict(config),
    )  # fmt: skip


class _Classifier(Model):
    """What the card's model and trained ones share."""

    def names(self, context: Context, count: int) -> tuple[str, ...]:
        """Names of the classes."""
        raise TypeError(f"{type(self).__name__} must define names()")

    def encode(self, slide: Slide, context: Context, more: Mapping[str, Any]) -> SlideFeatures:
        """Features of a slide by the encoder that the classifier was trained with.

        Raises
        ------
        omlab.errors.UsageError
            The encoder takes no slides or, where its graphs tell, makes another number of features; no patch has been
            read then.
        """
        raise TypeError(f"{type(self).__name__} must define encode()")

    def width(self, context: Context) -> int:
        """Features of a patch that the classifier takes."""
        return int(self.graphs(context.variant)[-1].inputs[0].shape[1])

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Refuse an overlap that is none."""
        looking.check_overlap(options["overlap"])

    def predict(self, case: Case, context: Context) -> Result:
        """Probabilities of the classes, with attention and heat map.

        Raises
        ------
        omlab.errors.InputError
            The case is neither a slide nor features, or the features are of another encoder.
        omlab.errors.UsageError
            What :meth:`encode` raises; a finer heat map is asked for without the slide.
        """
        options = context.options
        made: SlideFeatures | None = None
        if isinstance(case, Slide):
            slide: Slide | None = case.stated(mpp=options["slide_mpp"], magnification=options["slide_magnification"])
            made = self.encode(case, context, {})
            bag = PatchFeatures(
                name=case.name, source=case.source, features=made.features(), coords=made.coords, side=made.side
            )
        elif isinstance(case, PatchFeatures):
            bag, slide = case, looking.slide_of(case, options["slides"])
        else:
            raise InputError(f"{case.name}: {self.card.name} takes a slide or features of its patches")
        result, scores = looking.classify(
            bag, context, lambda count: self.names(context, count), width=self.width(context)
        )  # fmt: skip
        if bag.coords is None or bag.side is None:
            return attrs.evolve(result, measurements={"patches": len(scores)})
        seen = looking.Seen(scores=scores, coords=bag.coords, side=bag.side)
        fine = None
        if options["overlap"] > 0:
            if not isinstance(case, Slide):
                raise UsageError(
                    "a finer heat map needs the slide itself as input, found features of its patches",
                    remedy="Leave --overlap out, or give the slide",
                )
            chosen = int(np.argmax(result.probabilities))
            fine = looking.finer(
                case, context, lambda one, more: self.encode(one, attrs.evolve(context, scratch=None), more), seen,
                chosen, options["overlap"], options["patch_size"],
            )  # fmt: skip
        shown: Classification = looking.with_maps(result, seen, slide, options, fine=fine)
        if made is None:
            return shown
        kept = made
        return attrs.evolve(shown, files={"features.h5": lambda path: write_h5(kept, path), **shown.files})


class ClamModel(_Classifier):
    """The model ``clam``."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self._encoders: dict[tuple[str, str], LoadedModel] = {}

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``classifier`` alone; the encoder of slides is another model."""
        config = variant.config
        return (classifier_graph(int(config["features"]), len(variant.labels) or "classes", config),)

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network of the variant, as constructed."""
        from omlab_clam.network import NETWORKS

        config = variant.config
        build = NETWORKS[config.get("network", "sb")]
        return build(features=int(config["features"]), n_classes=len(variant.labels) or 2).eval()

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network of a file, whichever it is.

        Raises
        ------
        omlab.errors.WeightsError
            It takes other features or tells other classes apart than the variant.
        """
        for module in ("torch", "omlab_sdk"):
            require(module, needed_for="making the engine of clam", install="omlab-clam[convert]")
        from omlab_clam.checkpoint import head

        (asset,) = variant.weights
        path = files[asset.id]
        network: Any = head(path, asset)
        expected = int(variant.config["features"])
        if network.width != expected:
            raise WeightsError(
                f"{path}: takes {network.width} features, variant '{variant.name}' has {expected}",
                remedy="Choose the variant of its size, say --variant classifier-1024",
            )
        return checked(network, len(variant.labels), path, variant.name)

    def names(self, context: Context, count: int) -> tuple[str, ...]:
        """Those of the card, or of the option."""
        return class_names(count, context.variant.labels, context.options["names"])

    def encode(self, slide: Slide, context: Context, more: Mapping[str, Any]) -> SlideFeatures:
        """Features by the model that the option ``encoder`` names."""
        loaded = self.encoder(context.options["encoder"], context.options["encoder_variant"])
        found, width = features_of(loaded.graphs), self.width(context)
        if found not in (None, width):
            raise UsageError(
                f"the encoder '{loaded.card.name}', variant '{loaded.variant.name}', gives {found} features a patch, "
                f"variant '{context.variant.name}' of {self.card.name} takes {width}",
                remedy="Name the encoder that it was trained with: --encoder and --encoder-variant",
            )
        return encoded(loaded, slide, context, more)

    def encoder(self, name: str, variant: str) -> LoadedModel:
        """The encoder, loaded once."""
        import omlab

        if (name, variant) not in self._encoders:
            self._encoders[name, variant] = omlab.load(name, variant=variant or None)
        return self._encoders[name, variant]


def checked(network: Any, classes: int, path: Path, variant: str) -> torch.nn.Module:
    """The network, if it tells as many classes apart. Raises :class:`omlab.errors.WeightsError`."""
    import torch

    with torch.inference_mode():
        found = network(torch.zeros(1, network.width))[0].shape[1]
    if classes and found != classes:
        raise WeightsError(
            f"{path}: tells {found} classes apart, variant '{variant}' has {classes}",
            remedy="Use --variant classifier, which takes any number, and name them with --names",
        )
    return network  # type: ignore[no-any-return]


def features_of(graphs: Sequence[Graph]) -> int | None:
    """Features of a patch that an encoder's graphs declare; ``None`` where they declare none, or several widths."""
    widths = {
        output.shape[-1]
        for graph in graphs
        for output in graph.outputs
        if graph.judge_of(output.name) is Judge.EMBEDDING
    }
    width = widths.pop() if len(widths) == 1 else None
    return width if isinstance(width, int) else None


def encoded(loaded: LoadedModel, slide: Slide, context: Context, more: Mapping[str, Any]) -> SlideFeatures:
    """Features of a slide by a loaded encoder. Raises :class:`omlab.errors.UsageError` for one that takes none."""
    if Slide.kind not in loaded.card.inputs:
        raise UsageError(
            f"'{loaded.card.name}' encodes no slides", remedy="omlab list models --task embedding --input slide"
        )
    known = {option.name.replace("-", "_") for option in loaded.card.options}
    given = {name: context.options[name] for name in PASSED if context.options.get(name) is not None} | dict(more)
    outcome = loaded.run(
        slide, options={name: value for name, value in given.items() if name in known}, listener=context.listener,
        cancel=context.cancel, scratch=context.scratch,
    )  # fmt: skip
    if not isinstance(outcome.result, SlideFeatures):
        raise UsageError(f"'{loaded.card.name}' gave {outcome.result.kind} for a slide, features were expected")
    for stage, row in outcome.stages.items():
        kept = context.stages.setdefault(stage, {"seconds": 0.0, "peak_mb": 0.0})
        kept["seconds"] += row["seconds"]
        kept["peak_mb"] = max(kept["peak_mb"], row["peak_mb"])
    return outcome.result


class TrainedClassifier(_Classifier):
    """A head that was trained on the features of ``base``, with the base in front of it where slides are given."""

    def __init__(self, card: ModelCard, base: Model, base_variant: Variant, folder: Path) -> None:
        super().__init__(card)
        self.base, self.base_variant, self.head = base, base_variant, folder / HEAD

    def asset_owner(self, variant: Variant) -> tuple[ModelCard, Variant]:
        """The base, whose encoder is needed for slides."""
        return self.base.asset_owner(self.base_variant)

    def base_weights(self, variant: Variant) -> dict[str, Path]:
        return self.base.base_weights(self.base_variant) | self.base.own_weights(self.base_variant)

    def own_weights(self, variant: Variant) -> dict[str, Path]:
        return {"head": self.head}

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """Those of the base, and ``classifier``."""
        features = int(variant.config["features"])
        own = classifier_graph(features, len(self.card.labels), dict(variant.config))
        return (*self.base.graphs(self.base_variant), own)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The base's network, or the head."""
        if graph.name != "classifier":
            return self.base.network(graph, self.base_variant, files)
        from omlab_clam.checkpoint import head

        return checked(head(files["head"]), len(self.card.labels), self.head, variant.name)

    def examples(self, graph: Graph, variant: Variant) -> Any:
        if graph.name != "classifier":
            return self.base.examples(graph, self.base_variant)
        return super().examples(graph, variant)

    def names(self, context: Context, count: int) -> tuple[str, ...]:
        return tuple(label.name for label in self.card.labels)

    def encode(self, slide: Slide, context: Context, more: Mapping[str, Any]) -> SlideFeatures:
        known = options_of(self.base.card, {})
        given = {name: context.options[name] for name in PASSED if context.options.get(name) is not None} | dict(more)
        options = known | {name: value for name, value in given.items() if name in known}
        result = self.base.predict(slide, attrs.evolve(context, variant=self.base_variant, options=options))
        if not isinstance(result, SlideFeatures):
            raise UsageError(f"'{self.base.card.name}' gave {result.kind} for a slide, features were expected")
        return result
