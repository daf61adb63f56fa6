"""The model ``endo-fm``: clips of a video to embeddings, or to the classes of PolypDiag."""

from __future__ import annotations

import itertools
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
from omlab.results import Classification, Embedding, Result, Scores
from omlab_endo_fm import clips
from omlab_endo_fm.watching import SMALL, need_torch, shape_of, stream, video_of

if TYPE_CHECKING:
    import torch

SIDE = 224
SAMPLING = clips.Sampling()
BATCH = {"batch": (1, 1, 8)}
#: Clips that go through a GPU together; a processor gains nothing from more than one.
TOGETHER = 4
#: Option ``crop`` -> pixels of the shorter side, and which square is taken.
CROPS = {"start": (224, 0), "centre": (224, 1), "end": (224, 2), "centre-256": (256, 1)}
_SOURCES = ("omlab_endo_fm.network", "omlab_endo_fm.checkpoint")


class EndoFm(Model):
    """The model ``endo-fm``. A variant's ``config`` may have a ``shape``: arguments of the network in place of
    ViT-B's."""

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """``encoder``: clips to features; ``classifier``: clips to logits."""
        clip = TensorSpec(
            "clip", "float32", ("batch", 3, SAMPLING.frames, SIDE, SIDE), "batch RGB frame row column", BATCH
        )
        classifies = self._classifies(variant)
        output = (
            TensorSpec("logits", "float32", ("batch", len(variant.labels)), "batch class", BATCH)
            if classifies
            else TensorSpec("feature", "float32", ("batch", shape_of(variant)["embed_dim"]), "batch feature", BATCH)
        )
        return (
            Graph(
                name="classifier" if classifies else "encoder", inputs=(clip,), outputs=(output,),
                judge=Judge.LOGITS if classifies else Judge.EMBEDDING, sources=_SOURCES, config=dict(variant.config),
            ),
        )  # fmt: skip

    @staticmethod
    def _classifies(variant: Variant) -> bool:
        return bool(variant.config["task"] == "classification")

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """ViT-B, as constructed."""
        from omlab_endo_fm.network import Classifier, VideoTransformer, fold

        encoder = VideoTransformer(**shape_of(variant)).eval()
        fold(encoder.blocks)
        return Classifier(encoder, len(variant.labels)).eval() if self._classifies(variant) else encoder

    def small(self, variant: Variant) -> Variant:
        """Two narrow blocks in place of twelve."""
        return variant.configured(shape=SMALL)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The network with the published or fine-tuned weights, its tables brought to the clip."""
        need_torch(self.card.name)
        from omlab_endo_fm.checkpoint import classifier, encoder
        from omlab_endo_fm.network import fit, fold

        path = files["net"]
        found = classifier(path) if self._classifies(variant) else encoder(path)
        inner = found.network if self._classifies(variant) else found
        fit(inner, SIDE, SIDE, SAMPLING.frames)  # type: ignore[arg-type]
        fold(inner.blocks)  # type: ignore[arg-type, union-attr]
        return found

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, NDArray[Any]]]:
        """A clip of the sampled kind: a bright disc that moves, with texture."""
        rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
        noise = np.random.default_rng(0).standard_normal((3, SAMPLING.frames, SIDE, SIDE), dtype=np.float32)
        disc = [np.exp(-4 * ((rows - 0.1 * t + 0.4) ** 2 + columns**2)) for t in range(SAMPLING.frames)]
        yield {"clip": (2 * np.stack(disc)[None] - 1 + 0.3 * noise)[None].astype(np.float32)}

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raises :class:`omlab.errors.UsageError` where ``clips`` is neither a number from 1 nor ``all``."""
        wish = options["clips"]
        if wish != "all" and (not wish.isdecimal() or not int(wish)):
            raise UsageError(f"'{self.card.name}': option 'clips' is a number from 1 or 'all', found '{wish}'")

    def predict(self, case: Case, context: Context) -> Result:
        """One clip: :class:`omlab.results.Embedding` or :class:`omlab.results.Classification`. Several: the mean
        embedding, with that of each clip as a token; or the classes of each clip as a table.

        Options: ``clips`` (``"1"``, a number of views spread over the video, or ``"all"``: one after the other),
        ``crop`` (which square of a frame is seen).

        Raises
        ------
        omlab.errors.InputError
            The case is no video, or cannot be decoded.
        """
        video = video_of(case, self.card.name)
        taken = self._clips(video, context.options["clips"])
        classifies = self._classifies(context.variant)
        crop = context.options["crop"]
        if crop == "auto":
            crop = "start" if classifies else "centre"
        outputs = self._run(video, taken, CROPS[crop], context)
        taken = taken[: len(outputs)]
        if not classifies:
            return Embedding(
                vector=outputs.mean(axis=0), tokens=outputs if len(taken) > 1 else None,
                measurements={"clips": float(len(taken))} if len(taken) > 1 else {},
            )  # fmt: skip
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        names = tuple(label.name for label in context.variant.labels)
        wish = context.options["clips"]
        if wish != "all" and int(wish) == 1:
            return Classification(classes=names, probabilities=shares[0])
        return _time_line(video, taken, names, shares)

    def _clips(self, video: Video, wish: str) -> list[NDArray[np.int64]]:
        count, rate = video.frame_count, video.rate
        if wish == "all":
            return clips.consecutive(count, rate, SAMPLING)
        views = int(wish)
        return [clips.clip(count, rate, SAMPLING, view=k, views=views, ticks=video.ticks) for k in range(views)]

    def _run(
        self, video: Video, taken: list[NDArray[np.int64]], crop: tuple[int, int], context: Context
    ) -> NDArray[np.float32]:
        """[clip, feature or class]. Clips are decoded, seen and forgotten one after the other; there are fewer than
        asked for where the video ends early."""
        size, index = crop
        graph = self.graphs(context.variant)[0]
        engine = context.engines[graph.name]  # made or loaded here, which is no part of a stage

        def prepare(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
            return clips.prepare(frame[None], size=size, crop=SIDE, index=index)[:, 0]

        incoming = stream(video, taken, prepare)
        together = TOGETHER if engine.info.device == "cuda" else 1
        found: list[NDArray[np.float32]] = []
        while len(found) < len(taken):
            with context.stage("prepare"):
                batch = list(itertools.islice(incoming, together))
            if not batch:
                break
            with context.stage("network"):
                found += list(engine({"clip": np.stack(batch)})[graph.outputs[0].name])
            context.progress("network", len(found), len(taken), "clips")
        return np.stack(found).astype(np.float32)


def _time_line(
    video: Video, taken: list[NDArray[np.int64]], names: tuple[str, ...], shares: NDArray[np.float32]
) -> Scores:
    """A row a clip: where it lies, and the probability of each class."""
    length = SAMPLING.length(video.rate)
    starts = [int(clip[0]) for clip in taken]
    ends = [min(start + length, video.frame_count) for start in starts]
    columns: dict[str, Any] = {
        "clip": list(range(len(taken))), "start_frame": starts,
        "start_s": [round(video.time_s(s), 4) for s in starts], "end_s": [round(e / video.rate, 4) for e in ends],
    }  # fmt: skip
    columns |= {name: [float(p) for p in shares[:, place]] for place, name in enumerate(names)}
    measurements = {
        f"highest_{names[-1]}": float(shares[:, -1].max()),
        f"mean_{names[-1]}": float(shares[:, -1].mean()),
    }
    return Scores(columns=columns, measurements=measurements)
