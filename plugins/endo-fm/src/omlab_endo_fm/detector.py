"""The model ``endo-fm-det``: frames of a video to boxes around polyps, with the help of neighbouring frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omlab.cards import Variant
from omlab.cases import Case, Video
from omlab.errors import UsageError
from omlab.graphs import Graph, Judge, TensorSpec
from omlab.model import Context, Model
from omlab.prompts import Prompts
from omlab.results import Detections, Result
from omlab_endo_fm import boxes, clips
from omlab_endo_fm.watching import SMALL, at_least, need_torch, shape_of, video_of

if TYPE_CHECKING:
    import torch

SIDE, WIDTH, CLASSES = 640, 256, 2
STRIDES = {3: 8, 4: 16, 5: 32, 6: 64, 7: 128}
#: What the graph ``frame`` gives for each level -> channels.
OUTPUTS = {"cls_tower": WIDTH, "bbox_tower": WIDTH, "box": 4, "cls": CLASSES, "centerness": 1}
#: Of these, what the graph ``join`` takes.
JOINED = ("cls_tower", "bbox_tower", "box")
#: Least score of the first stage, of upstream's post-processing.
FIRST = 0.05
_SOURCES = ("omlab_endo_fm.detection", "omlab_endo_fm.network", "omlab_endo_fm.checkpoint")

Levels = dict[str, NDArray[np.float32]]


def side_of(variant: Variant) -> int:
    """Pixels along each side of the frame that the network sees."""
    return int(variant.config.get("side", SIDE))


def _channels(variant: Variant) -> dict[str, int]:
    """:data:`OUTPUTS` of a variant."""
    width = int(variant.config.get("width", WIDTH))
    return {name: width if name.endswith("_tower") else count for name, count in OUTPUTS.items()}


def _spec(name: str, channels: int, level: int, frame: int, ranges: dict[str, tuple[int, int, int]]) -> TensorSpec:
    side = -(-frame // STRIDES[level])
    first: int | str = next(iter(ranges), 1)
    return TensorSpec(f"{name}{level}", "float32", (first, channels, side, side), "frame channel row column", ranges)


class EndoFmDetector(Model):
    """The model ``endo-fm-det``. A variant's ``config`` may have a ``side`` of the frame that the network sees, the
    ``width`` of its maps and a ``shape``: arguments of the transformer in place of ViT-B's."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``frame``: one frame to the maps of each level, by itself; ``join``: maps of a key frame and its references
        to class scores and box corrections of the key frame."""
        several = {"frames": (2, 11, 1 + 2 * clips.REACH)}
        side, outputs = side_of(variant), _channels(variant)
        frame = Graph(
            name="frame",
            inputs=(TensorSpec("frame", "float32", (1, 3, side, side), "frame BGR row column"),),
            outputs=[_spec(name, count, level, side, {}) for level in STRIDES for name, count in outputs.items()],
            judge=Judge.VALUES,
            sources=_SOURCES,
            config=dict(variant.config),
        )
        join = Graph(
            name="join",
            inputs=[_spec(name, outputs[name], level, side, several) for level in STRIDES for name in JOINED],
            outputs=[
                _spec(name, channels, level, side, {})
                for level in STRIDES
                for name, channels in (("stft_cls", CLASSES), ("stft_box", 4))
            ],
            judge=Judge.VALUES,
            sources=_SOURCES,
            config=dict(variant.config),
        )
        return frame, join

    def _part(self, graph: Graph, network: Any, side: int) -> torch.nn.Module:
        from omlab_endo_fm.detection import FramePart, JoinPart
        from omlab_endo_fm.network import fit, fold

        if graph.name == "join":
            return JoinPart(network).eval()
        fit(network.backbone.body, side, side, 1)
        fold(network.backbone.body.blocks, single_frame=True)
        return FramePart(network).eval()

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """The part of the network, as constructed."""
        from omlab_endo_fm.detection import Detector

        network = Detector(out_channels=_channels(variant)["cls_tower"], **shape_of(variant))
        return self._part(graph, network.eval(), side_of(variant))

    def small(self, variant: Variant) -> Variant:
        """A frame of 256 pixels, two narrow blocks, and narrow maps."""
        return variant.configured(side=256, width=32, shape=SMALL)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The part of the network with the published weights."""
        need_torch(self.card.name)
        from omlab_endo_fm.checkpoint import detector

        return self._part(graph, detector(files["net"]), side_of(variant))

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """A frame with a bright bump; maps as the towers give them: none below 0, boxes of a few strides."""
        generator = np.random.default_rng(0)
        if graph.name == "frame":
            side = side_of(variant)
            rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
            bump = 150 * np.exp(-9 * ((rows - 0.2) ** 2 + (columns + 0.1) ** 2)) + 60
            noise = generator.integers(-20, 21, (side, side, 3))
            frame = np.clip(bump[:, :, None] + noise, 0, 255).astype(np.uint8)
            yield {"frame": clips.detection_input(frame, side)[None]}
            return
        found: dict[str, NDArray[Any]] = {}
        for spec in graph.inputs:
            values = np.abs(generator.standard_normal(spec.concrete(), dtype=np.float32))
            found[spec.name] = values * (2 * STRIDES[int(spec.name[-1])]) if spec.name.startswith("box") else values
        yield found

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` for an option out of its range."""
        name = self.card.name
        at_least("every", options["every"], 1, name)
        at_least("seed", options["seed"], 0, name)
        sides = at_least("references", options["references"], 1, name)
        if sides > clips.REACH or not 0 <= options["threshold"] < 1:
            raise UsageError(
                f"'{name}': option 'references' is 1 to {clips.REACH}, 'threshold' from 0 and below 1, "
                f"found {sides} and {options['threshold']:g}"
            )

    def predict(self, case: Case, context: Context) -> Result:
        """Boxes in pixels of the video's frames.

        Options: ``threshold`` (least score), ``every`` (look at every n-th frame only; neighbours are then n frames
        apart), ``references`` (neighbours on each side that help), ``seed`` (of their draw).

        Raises
        ------
        omlab.errors.InputError
            The case is no video, or cannot be decoded.
        """
        video = video_of(case, self.card.name)
        options = context.options
        every = options["every"]
        found: list[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]] = []
        total = -(-video.frame_count // every)
        looked = 0
        for number, levels, nearby in self._windows(video, every, options["references"], context):
            looked += 1
            context.progress("network", looked, max(total, looked), "frames")
            answer = self._boxes(levels, nearby, options["threshold"], context)
            if answer is not None:
                found.append((number, *answer))
        return self._result(video, found, looked, side_of(context.variant))

    def _windows(
        self, video: Video, every: int, sides: int, context: Context
    ) -> Iterator[tuple[int, Levels, list[Levels]]]:
        """(number of the key frame, its maps, those of its references). A frame is looked at once, and forgotten when
        it is too far behind to help."""
        engine, side = context.engines["frame"], side_of(context.variant)
        seed = context.options["seed"]
        held: dict[int, tuple[int, Levels]] = {}  # place in the sequence -> number in the video, maps
        incoming = video.frames(step=every)
        place, key, ended = 0, 0, False
        while True:
            while not ended and place <= key + clips.REACH:
                with context.stage("prepare"):
                    arrived = next(incoming, None)
                    if arrived is None:
                        ended = True
                        break
                    image = clips.detection_input(arrived[1], side)[None]
                with context.stage("network"):
                    held[place] = (arrived[0], engine({"frame": image}))
                place += 1
            if key >= place:
                return
            drawn = clips.references(key, place, sides, seed)
            yield held[key][0], held[key][1], [held[int(i)][1] for i in drawn]
            key += 1
            held = {i: kept for i, kept in held.items() if i >= key - clips.REACH}

    def _boxes(
        self, key: Levels, nearby: list[Levels], threshold: float, context: Context
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]] | None:
        """Boxes in pixels of the network's frame, scores and classes; ``None`` where nothing can reach the threshold.

        The final score is the root of the first stage's times something below 1, so a first stage below the square of
        the threshold decides it without looking at the neighbours.
        """
        with context.stage("restore"):
            first = max(
                float(np.sqrt(boxes.sigmoid(key[f"cls{i}"][0]) * boxes.sigmoid(key[f"centerness{i}"][0])).max())
                for i in STRIDES
            )
        if first <= max(FIRST, threshold**2 * 0.999):
            return None
        engine = context.engines["join"]
        with context.stage("network"):
            given = {
                f"{name}{i}": np.concatenate([levels[f"{name}{i}"] for levels in (key, *nearby)])
                for i in STRIDES
                for name in JOINED
            }
            joined = engine(given)
        with context.stage("restore"):
            levels = [
                {
                    "cls": key[f"cls{i}"][0], "centerness": key[f"centerness{i}"][0],
                    "pre_box": boxes.corners(key[f"box{i}"][0], stride),
                    "stft_cls": joined[f"stft_cls{i}"][0], "stft_box": joined[f"stft_box{i}"][0],
                }
                for i, stride in STRIDES.items()
            ]  # fmt: skip
            found, scores, kinds = boxes.decode(levels, (side_of(context.variant),) * 2, threshold=FIRST)
            good = scores >= threshold
            return (found[good], scores[good], kinds[good]) if good.any() else None

    def _result(self, video: Video, found: list[Any], looked: int, side: int) -> Detections:
        scale = np.array([video.size[1] / side, video.size[0] / side] * 2, np.float32)
        count = [len(scores) for _, _, scores, _ in found]

        def joined(place: int, kind: Any, *shape: int) -> NDArray[Any]:
            return np.concatenate([np.empty((0, *shape), kind), *(row[place] for row in found)]).astype(kind)

        return Detections(
            boxes=joined(1, np.float32, 4) * scale, scores=joined(2, np.float32), labels=joined(3, np.int64),
            classes=tuple(label.name for label in self.card.labels),
            frames=np.repeat(np.array([row[0] for row in found], np.int64), count),
            measurements={"frames": float(looked), "frames_with_boxes": float(len(found))},
        )  # fmt: skip
