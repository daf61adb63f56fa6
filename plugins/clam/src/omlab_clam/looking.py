"""What a slide classifier gives for a bag: classes, scores of patches, and a heat map where the slide is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import PatchFeatures, Slide
from omlab.errors import InputError, UsageError, require
from omlab.files import whole
from omlab.inference.tissue import PRESETS, Tissue, segment
from omlab.model import Context
from omlab.results import Classification, SlideFeatures

#: Patches whose scores are asked for at once.
ROWS = 8192
#: CLAM's shift of the four points for a finer grid, by how far its patches overlap.
_SHIFTS = ((0.25, 0.375), (0.95, 0.5))
#: Gives the features of a slide; further options say how.
Encode = Callable[[Slide, Mapping[str, Any]], SlideFeatures]


@attrs.frozen(eq=False, kw_only=True)
class Seen:
    """Scores of the patches of one slide.

    Attributes
    ----------
    scores : [patch], those of the class that was chosen.
    """

    scores: NDArray[np.float32]
    coords: NDArray[np.int64]
    side: tuple[int, int]


def classify(
    bag: PatchFeatures, context: Context, names: Callable[[int], Sequence[str]], *, width: int
) -> tuple[Classification, NDArray[np.float32]]:
    """Classes of a bag, and the scores [patch] of the class that is chosen.

    Raises
    ------
    omlab.errors.InputError
        Its features are of another encoder: there are more or fewer of them.
    """
    if bag.features.shape[1] != width:
        raise InputError(
            f"{bag.name}: has {bag.features.shape[1]} features a patch, the classifier takes {width}",
            remedy="Use features of the encoder that it was trained with",
        )
    with context.stage("network"):
        found = context.engines["classifier"]({"bag": np.ascontiguousarray(bag.features, np.float32)})
    logits = np.asarray(found["logits"], np.float32)[0]
    result = Classification.of_logits(logits, names(len(logits)))
    return result, row_of(found["scores"], int(np.argmax(logits)))


def row_of(scores: NDArray[np.float32], chosen: int) -> NDArray[np.float32]:
    """Scores of the class that was chosen; the only row of a network with one for all."""
    return np.asarray(scores[chosen if len(scores) > 1 else 0], np.float32)


def finer(
    slide: Slide, context: Context, encode: Encode, coarse: Seen, chosen: int, overlap: float, patch: int
) -> Seen:
    """Scores on a grid of overlapping patches, each as its percentile among those of the coarse grid.

    Raises
    ------
    omlab.errors.UsageError
        The overlap is not from 0 up to 1.
    """
    from omlab_clam.heatmap import percentiles_among

    shift = next((value for most, value in _SHIFTS if overlap < most), 0.625)
    step = max(1, int(patch * (1 - overlap)))
    found = encode(slide, {"step_size": step, "inside": "four_pt_hard", "shift": shift})
    scores = np.empty(found.patches, np.float32)
    with context.stage("network"):
        for start in range(0, found.patches, ROWS):
            rows = found.features(start, start + ROWS)
            answer = context.engines["classifier"]({"bag": rows})["scores"]
            scores[start : start + ROWS] = row_of(answer, chosen)
            context.progress("network", min(start + ROWS, found.patches), found.patches, "patches")
    return Seen(
        scores=percentiles_among(scores, coarse.scores).astype(np.float32), coords=found.coords, side=found.side
    )


def with_maps(
    result: Classification, seen: Seen, slide: Slide | None, options: Mapping[str, Any], *, fine: Seen | None = None
) -> Classification:
    """The result with the files of its attention, and the heat map where there is a slide."""
    files: dict[str, Any] = {"attention.h5": lambda path: write_attention(path, seen)}
    illustration = None
    if slide is not None:
        try:
            tissue: Tissue | None = segment(slide, PRESETS[options["tissue"]])
        except InputError:  # features that were made by other rules can be shown all the same
            tissue = None
        drawing = _Drawing(slide=slide, seen=fine or seen, tissue=tissue, options=options, fine=fine is not None)
        files["heatmap.png"] = drawing.write
        illustration = lambda title: drawing.picture(title, result)  # noqa: E731
    return attrs.evolve(
        result, files=dict(result.files) | files, illustration=illustration,
        measurements=dict(result.measurements) | {"patches": len(seen.scores)},
    )  # fmt: skip


@attrs.frozen(eq=False, kw_only=True)
class _Drawing:
    slide: Slide
    seen: Seen
    tissue: Tissue | None
    options: Mapping[str, Any]
    fine: bool

    def map(self, *, level: int | None = None) -> NDArray[np.uint8]:
        """The heat map at the level that is asked for, or another."""
        from omlab_clam import heatmap

        options = self.options
        return heatmap.draw(
            self.slide, self.seen.scores, self.seen.coords, self.seen.side, tissue=self.tissue,
            level=options["vis_level"] if level is None else level, alpha=options["alpha"], cmap=options["cmap"],
            blur=options["blur"], as_percentiles=not self.fine, overlap=options["overlap"] if self.fine else 0.0,
        )  # fmt: skip

    def write(self, path: Path) -> None:
        from PIL import Image as Pillow

        with whole(path) as temporary:
            Pillow.fromarray(self.map()).save(temporary, format="PNG", compress_level=3)

    def picture(self, title: str, result: Classification) -> Any:
        from PIL import Image as Pillow

        from omlab.results.slide_picture import SIDE, framed

        picture = Pillow.fromarray(self.map())
        picture.thumbnail((SIDE, SIDE), Pillow.Resampling.BICUBIC)
        order = np.argsort(-result.probabilities)[:4]
        told = ", ".join(f"{result.classes[i]} {float(result.probabilities[i]):.1%}" for i in order.tolist())
        return framed(picture, self.slide, title, told)


def write_attention(path: Path, seen: Seen) -> None:
    """``attention_scores`` [patch, 1] and ``coords``, as CLAM's scripts lay them out."""
    h5py = require("h5py", needed_for="writing attention", install="omlab[slides]")
    with whole(path) as temporary, h5py.File(temporary, "w") as file:
        file["attention_scores"] = np.asarray(seen.scores, np.float32)[:, None]
        file["coords"] = np.asarray(seen.coords, np.int64)
        file["coords"].attrs["patch_size_level0"] = np.asarray(seen.side, np.int64)


def slide_of(bag: PatchFeatures, where: Path | None) -> Slide | None:
    """The slide that a bag is of: ``where`` is its file, or a folder with a file of its name.

    Raises
    ------
    omlab.errors.InputError
        ``where`` does not exist, or has no such slide.
    """
    if where is None:
        return None
    from omlab.cases import slide as slides

    if where.is_file():
        return slides.read(where)
    name = str(bag.about.get("name") or Path(bag.name).stem)
    found = sorted(p for p in where.glob(f"{name}.*") if p.is_file() and p.suffix != ".h5") if where.is_dir() else []
    if not found:
        raise InputError(f"{where}: has no slide '{name}'", remedy="Name the slide itself with --slides")
    return slides.read(found[0])


def check_overlap(overlap: float) -> None:
    """Raise :class:`omlab.errors.UsageError` for an overlap that is none."""
    if not 0 <= overlap < 1:
        raise UsageError(f"the overlap is {overlap:g}, 0 up to 1 was expected")
