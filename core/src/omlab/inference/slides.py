"""A slide through a patch encoder: which patches, how each is read, and features batch by batch into a file."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases.slide import Slide
from omlab.errors import InputError, UsageError
from omlab.inference.ahead import ahead
from omlab.inference.patches import GridRules, grid, reference_size
from omlab.inference.tissue import Tissue, TissueRules, segment
from omlab.memory import usable_cpus
from omlab.model import Context
from omlab.results.slide_features import FeatureWriter, SlideFeatures, patch_attributes, write_patches

#: Name of the growing file of features in the folder of a case.
UNFINISHED = "features.unfinished.h5"
#: More threads do not read faster from one disk.
MOST_READERS = 8


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """Which patches of a slide are looked at, and how each is read.

    Attributes
    ----------
    tissue : outlines that the patches lie in.
    coords : [patch, 2] int64, upper left corners (x, y) in level-0 pixels.
    patch : side of a patch as the encoder gets it, in pixels.
    level : level that is read.
    read_size : pixels of that level that are read, (x, y); resized to ``patch`` where they differ.
    scale : level-0 pixels of a pixel of the patch, (x, y).
    """

    tissue: Tissue
    coords: NDArray[np.int64]
    patch: int
    level: int
    read_size: tuple[int, int]
    scale: tuple[float, float]

    @property
    def side(self) -> tuple[int, int]:
        """Side of a patch in level-0 pixels, (x, y)."""
        return reference_size(self.patch, self.scale)

    def read(self, slide: Slide, corner: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A patch [row, column, RGB]; black where it reaches over the border."""
        rgb = slide.region(int(corner[0]), int(corner[1]), *self.read_size, self.level)
        if self.read_size == (self.patch, self.patch):
            return rgb
        from PIL import Image as Pillow

        return np.asarray(Pillow.fromarray(rgb).resize((self.patch, self.patch), Pillow.Resampling.BILINEAR))


def plan(
    slide: Slide,
    *,
    tissue: TissueRules | Tissue | None = None,
    rules: GridRules | None = None,
    level: int = 0,
    magnification: float | None = None,
) -> Plan:
    """Find the tissue of a slide and lay out its patches.

    Parameters
    ----------
    level : level that patches are read from, as they are.
    magnification : read patches as seen at this magnification instead: from the level that has at least its detail,
        made smaller where it has more.

    Raises
    ------
    omlab.errors.InputError
        The slide has no tissue, no patch, no such level, or does not say its magnification and it is needed.
    """
    rules = rules or GridRules()
    if magnification is not None:
        scale, level, read_size = _at_magnification(slide, magnification, rules.patch)
    else:
        if not 0 <= level < len(slide.levels):
            raise InputError(f"{slide.name}: has no level {level}, it has 0 to {len(slide.levels) - 1}")
        across, down = slide.downsamples[level]
        scale, read_size = (float(int(across)), float(int(down))), (rules.patch, rules.patch)
    found = tissue if isinstance(tissue, Tissue) else segment(slide, tissue)
    coords = grid(found, slide.size, rules, scale)
    if not len(coords):
        raise InputError(
            f"{slide.name}: no patch of {rules.patch} pixels lies in its tissue",
            remedy="Take smaller patches, or another rule with --inside",
        )
    return Plan(tissue=found, coords=coords, patch=rules.patch, level=level, read_size=read_size, scale=scale)


def _at_magnification(slide: Slide, wanted: float, patch: int) -> tuple[tuple[float, float], int, tuple[int, int]]:
    if not wanted > 0:
        raise UsageError(f"the magnification is {wanted:g}, a positive number was expected")
    if slide.magnification is None:
        raise InputError(
            f"{slide.name}: does not tell its magnification, so patches at {wanted:g}x cannot be found",
            remedy="State it with --slide-magnification or --slide-mpp, or leave --magnification out",
        )
    factor = slide.magnification / wanted
    if factor < 1:
        raise InputError(
            f"{slide.name}: was scanned at {slide.magnification:g}x, patches at {wanted:g}x would have to be invented",
            remedy=f"Ask for at most {slide.magnification:g}",
        )
    # A level may be a hair coarser than its nominal factor, since its sides are whole numbers.
    level = slide.best_level(factor * 1.001)
    across, down = slide.downsamples[level]
    return (factor, factor), level, (max(1, round(patch * factor / across)), max(1, round(patch * factor / down)))


def attributes(slide: Slide, made: Plan) -> dict[str, Any]:
    """What a file of coordinates says of them: CLAM's attributes first."""
    width, height = slide.size
    own = {
        "patch_size_level0": np.asarray(made.side, np.int64), "slide_size": np.asarray([width, height], np.int64),
        "tool": "omlab",
    }  # fmt: skip
    if slide.mpp is not None:
        own["mpp"] = np.asarray(slide.mpp, np.float64)
    if slide.magnification is not None:
        own["magnification"] = float(slide.magnification)
    found = patch_attributes(
        patch=made.patch, level=made.level, downsample=made.scale, level_size=slide.levels[made.level], name=slide.stem
    )
    return found | own


def extract(
    slide: Slide,
    made: Plan,
    context: Context,
    *,
    prepare: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    compute: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    width: int,
    identity: Mapping[str, Any],
    batch: int = 32,
    readers: int = 0,
) -> SlideFeatures:
    """Features of every patch, streamed: several threads read and prepare, the engine computes, a file takes them.

    Memory does not depend on the size of the slide. An interrupted run goes on where it was, if ``context.scratch`` has
    the file that it left.

    Parameters
    ----------
    prepare : a patch [1, row, column, RGB] uint8 to the encoder's input; called from several threads at once.
    compute : the encoder's input to features [patch, width].
    identity : what decides the features beside slide and plan: weights, preparation.
    batch : patches that go through the encoder together.
    readers : threads that read; 0 takes the processors that this process may use.
    """
    if batch < 1 or readers < 0:
        raise UsageError(f"batches of {batch} and {readers} readers were asked for, at least 1 and 0 are needed")
    folder, keeper = context.scratch, None
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="omlab-slide-"))
    told = attributes(slide, made)
    writer = FeatureWriter(
        folder / UNFINISHED, made.coords, width, told, _identity(slide, made, identity)
    )  # fmt: skip
    total = len(made.coords)

    def load(start: int) -> NDArray[np.float32]:
        stop = min(start + batch, total)
        inputs: NDArray[np.float32] | None = None
        # One patch at a time: it stays in the processor's cache from the tile to the encoder's input.
        for number, corner in enumerate(made.coords[start:stop]):
            one = prepare(made.read(slide, corner)[None])[0]
            if inputs is None:
                inputs = np.empty((stop - start, *one.shape), one.dtype)
            inputs[number] = one
        assert inputs is not None
        return inputs

    workers = min(readers or usable_cpus(), MOST_READERS)
    try:
        with context.stage("network"):
            for inputs in ahead(load, range(writer.done, total, batch), workers=workers):
                writer.append(compute(inputs))
                context.progress("network", writer.done, total, "patches")
            writer.finish()
    except BaseException:
        writer.close()
        if context.scratch is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    result = SlideFeatures(
        file=writer.path, coords=made.coords, width=width, side=made.side,
        measurements=measurements(slide, made), files=_files(slide, made, told),
        illustration=lambda title: _picture(slide, made, title),
    )  # fmt: skip
    if context.scratch is None:
        keeper = weakref.finalize(result, shutil.rmtree, folder, True)
        object.__setattr__(result, "keeper", keeper)
    return result


def measurements(slide: Slide, made: Plan) -> dict[str, float]:
    """Patches, pieces of tissue and, where the scale is known, the area of the tissue."""
    from omlab.inference.tissue import opencv

    cv2 = opencv()
    found: dict[str, float] = {"patches": float(len(made.coords)), "tissue_pieces": float(len(made.tissue.contours))}
    if slide.mpp is not None:
        pixels = sum(cv2.contourArea(contour) for contour in made.tissue.contours)
        pixels -= sum(cv2.contourArea(hole) for holes in made.tissue.holes for hole in holes)
        found["tissue_mm2"] = float(pixels * slide.mpp[0] * slide.mpp[1] / 1e6)
    return found


def _identity(slide: Slide, made: Plan, more: Mapping[str, Any]) -> dict[str, Any]:
    import hashlib

    status = slide.source.path.stat() if slide.source.path else None
    return {
        "slide": [slide.name, list(slide.size), status and [status.st_size, status.st_mtime_ns]],
        "coords": hashlib.sha256(np.ascontiguousarray(made.coords).tobytes()).hexdigest(),
        "patch": [made.patch, made.level, list(made.read_size)],
        **more,
    }


def _files(slide: Slide, made: Plan, told: Mapping[str, Any]) -> dict[str, Callable[[Path], None]]:
    from omlab.results.slide_outlines import write_geojson

    return {
        "patches.h5": lambda path: write_patches(path, made.coords, dict(told) | {"save_path": str(path.parent)}),
        "tissue.geojson": lambda path: write_geojson(path, made.tissue),
    }


def _picture(slide: Slide, made: Plan, title: str) -> Any:
    from omlab.results.slide_picture import draw

    return draw(slide, made.tissue, made.coords, made.side, title)
