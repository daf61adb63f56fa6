"""The model ``endo-fm-seg``: frames of a video to masks of polyps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.cards import Variant
from omlab.cases import Case, Video
from omlab.errors import InputError
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import FrameLabels, Label, Result, VideoSegmentation
from omlab_endo_fm import clips
from omlab_endo_fm.watching import at_least, need_torch, video_of

if TYPE_CHECKING:
    import torch

    from omlab.engines.base import Engine

SIDE = 224
#: Frames that can attend to each other in one go.
MOST = 512


class EndoFmSegmenter(Model):
    """The model ``endo-fm-seg``. A variant's ``config`` may have a ``shape``: arguments of the network in place of the
    published ones."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``segmenter``: frames of one clip to logits of background and polyp; the frames attend to each other."""
        count = {"frames": (1, 8, MOST)}
        return (
            Graph(
                name="segmenter",
                inputs=(TensorSpec("frames", "float32", ("frames", 3, SIDE, SIDE), "frame RGB row column", count),),
                outputs=(TensorSpec("logits", "float32", ("frames", 2, SIDE, SIDE), "frame class row column", count),),
                judge=Judge.LABELS,
                sources=("omlab_endo_fm.segmentation", "omlab_endo_fm.network", "omlab_endo_fm.checkpoint"),
                config=dict(variant.config),
            ),
        )

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The network, as constructed."""
        from omlab_endo_fm.network import fold
        from omlab_endo_fm.segmentation import TransUNet

        network = TransUNet(**variant.config.get("shape", {})).eval()
        fold(network.transformer.encoder.layer)
        return network

    def small(self, variant: Variant) -> Variant:
        """Two narrow blocks, a stem of half the width with one unit a stage, few channels after them."""
        shape = {
            "hidden_size": 64, "depth": 2, "heads": 4, "resnet_units": [1, 1, 1], "width_factor": 0.5,
            "skip_channels": [256, 128, 32, 16], "decoder_channels": [32, 16, 16, 8],
        }  # fmt: skip
        return variant.configured(shape=shape)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published weights."""
        need_torch(self.card.name)
        from omlab_endo_fm.checkpoint import segmenter
        from omlab_endo_fm.network import fold
        from omlab_endo_fm.segmentation import freeze

        network = segmenter(files["net"])
        fold(network.transformer.encoder.layer)
        return freeze(network)

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """Frames of the sampled kind: a bright bump that moves on a textured ground."""
        rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
        count = graph.inputs[0].concrete()[0]
        noise = np.random.default_rng(0).standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)
        bump = [np.exp(-6 * ((rows - 0.1 * t + 0.4) ** 2 + columns**2)) for t in range(count)]
        yield {"frames": np.clip(1.6 * np.stack(bump)[:, None] - 0.8 + 0.1 * noise, -1, 1).astype(np.float32)}

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for ``every`` below 1 or ``clip`` below 0."""
        at_least("every", options["every"], 1, self.card.name)
        at_least("clip", options["clip"], 0, self.card.name)

    def predict(self, case: Case, context: Context) -> Result:
        """Masks on the grid of the frames.

        Options: ``clip`` (frames that attend to each other; 0: all of the video, as upstream evaluates), ``every``
        (look at every n-th frame only).

        Raises
        ------
        omlab.errors.InputError
            The case is no video, cannot be decoded, or is too long for ``clip`` 0.
        """
        video = video_of(case, self.card.name)
        every, clip = context.options["every"], context.options["clip"]
        expected = -(-video.frame_count // every)
        if clip == 0 and expected > MOST:
            raise InputError(
                f"{video.name}: has {expected} frames to look at, at most {MOST} can attend to each other",
                remedy="Use --clip 16, or --every N",
            )
        clip = min(clip or expected, MOST)
        structures = tuple(Label.of(card) for card in self.card.labels)
        labels = FrameLabels(video.size, [label.value for label in structures])
        engine = context.engines["segmenter"]
        numbers: list[int] = []
        incoming = video.frames(step=every)
        while True:
            with context.stage("prepare"):
                batch = _next(incoming, clip, numbers)
            if not batch:
                break
            for logits in self._seen(engine, np.stack(batch), context):
                with context.stage("restore"):
                    labels.append(mask_of(logits, video.size))
            context.progress("network", len(labels), max(expected, len(labels)), "frames")
        return VideoSegmentation(
            labels=labels, structures=structures, frames=np.array(numbers, np.int64), rate=video.rate,
            measurements=_measured(labels, structures, video),
        )  # fmt: skip

    def _seen(self, engine: Engine, frames: NDArray[np.float32], context: Context) -> NDArray[np.float32]:
        with context.stage("network"):
            return engine({"frames": frames})["logits"]


def _next(incoming: Iterator[Any], clip: int, numbers: list[int]) -> list[NDArray[np.float32]]:
    """Up to ``clip`` frames as the network sees them; their numbers are added to ``numbers``."""
    batch: list[NDArray[np.float32]] = []
    for number, frame in incoming:
        numbers.append(number)
        batch.append(clips.segmentation_input(frame, SIDE))
        if len(batch) == clip:
            break
    return batch


def mask_of(logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Logits [background and polyp, row, column] to labels of ``size``: the difference is brought to the frame's grid
    and cut at 0, so that outlines stay smooth."""
    difference = Pillow.fromarray(np.ascontiguousarray(logits[1] - logits[0], dtype=np.float32))
    if difference.size != (size[1], size[0]):
        difference = difference.resize((size[1], size[0]), Pillow.Resampling.BILINEAR)
    return (np.asarray(difference) > 0).astype(np.uint8)


def _measured(labels: FrameLabels, structures: tuple[Label, ...], video: Video) -> dict[str, float]:
    found = {"frames": float(len(labels))}
    for place, label in enumerate(structures):
        counts = labels.counts[:, place]
        found[f"{label.name}_frames"] = float((counts > 0).sum())
        found[f"{label.name}_greatest_share"] = float(counts.max(initial=0)) / (video.size[0] * video.size[1])
    return found
