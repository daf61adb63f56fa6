"""Slides to the regions and patches that stages 1 and 2 learn from, as upstream cuts TCGA.

Only the overview of a slide, and a few regions that are waiting to be written, are in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from omlab.cases import Slide
from omlab.errors import InputError, OutputError, UsageError
from omlab.files import whole
from omlab.inference.ahead import ahead
from omlab.inference.tissue import opencv
from omlab.memory import usable_cpus

Rgb = NDArray[np.uint8]
#: Folders of the two kinds of pictures; the one stands for the other in the name of a patch's region.
REGION, PATCH = "region", "patch"
#: One figure tells a patch of its region, so that the name of the region can be cut from that of the patch.
MOST_PATCHES = 10
#: Rows of an overview that are looked at together.
_ROWS = 512
_FINER = "Read them from the full resolution with --level 0"


@attrs.frozen(kw_only=True)
class Rules:
    """How a slide is cut. The defaults are upstream's.

    Attributes
    ----------
    level : level that regions are read from.
    side, saved : pixels along a region at that level, and in its file.
    regions : at most so many of a slide.
    patches, patch : patches that are drawn in a region, and level-0 pixels along one.
    margin : level-0 pixels between a patch and the border of its region, at least.
    region_limit, patch_limit : kept if darker (:func:`brightness`).
    least : pieces of tissue of fewer pixels of the overview are dropped.
    """

    level: int = 1
    side: int = 1024
    saved: int = 256
    regions: int = 200
    patches: int = 9
    patch: int = 256
    margin: int = 128
    region_limit: float = 220.0
    patch_limit: float = 240.0
    least: int = 64

    def __attrs_post_init__(self) -> None:
        lowest = {"level": 0, "side": 1, "saved": 1, "regions": 1, "patches": 0, "patch": 1, "margin": 0, "least": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} is at least {least}, found {getattr(self, name)}")
        if self.patches > MOST_PATCHES:
            raise UsageError(
                f"a region has at most {MOST_PATCHES} patches, found {self.patches}",
                remedy="One figure tells them apart in the names of their files",
            )


@attrs.frozen(eq=False, kw_only=True)
class Region:
    """A region of tissue that was kept.

    Attributes
    ----------
    place : upper left corner in level-0 pixels, (x, y).
    image : [row, column, RGB], made smaller.
    patches : number of the draw -> [row, column, RGB]; bright ones are left out.
    """

    place: tuple[int, int]
    image: Rgb
    patches: dict[int, Rgb]


def brightness(rgb: Rgb) -> float:
    """Mean over red, green, blue and opacity in 0..255, where every pixel is opaque: upstream counts that, too."""
    return (3.0 * float(rgb.mean()) + 255.0) / 4.0


def tissue(rgb: Rgb, least: int = Rules().least) -> NDArray[np.bool_]:
    """Where a picture [row, column, RGB] is tissue: saturation above Otsu's threshold, in pieces of ``least`` pixels
    or more (8 neighbours)."""
    cv2 = opencv()
    saturation = np.empty(rgb.shape[:2], np.uint8)
    for top in range(0, len(rgb), _ROWS):  # the other two channels of a whole overview would be a lot
        part = np.ascontiguousarray(rgb[top : top + _ROWS])
        saturation[top : top + _ROWS] = cv2.cvtColor(part, cv2.COLOR_RGB2HSV)[:, :, 1]
    _, binary = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    _, parts, facts, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    large = facts[:, cv2.CC_STAT_AREA] >= least
    large[0] = False  # glass
    return large[parts]


def cells(slide: Slide, rules: Rules) -> NDArray[np.int64]:
    """Regions [n, 2] of a slide whose middle is tissue: (column, row) in a grid of whole regions, row by row.

    Raises
    ------
    omlab.errors.InputError
        The slide has no such level, is smaller than a region there, or has no tissue.
    omlab.errors.UsageError
        A patch and its margins do not fit into a region.
    """
    if rules.level >= len(slide.levels):
        raise InputError(
            f"{slide.name}: has no level {rules.level} to read regions from, it has {len(slide.levels)}",
            remedy=_FINER,
        )
    columns, rows = (length // rules.side for length in slide.levels[rules.level])
    if not columns or not rows:
        width, height = slide.levels[rules.level]
        raise InputError(
            f"{slide.name}: level {rules.level} has {width} x {height} pixels, a region {rules.side} x {rules.side}",
            remedy=_FINER if rules.level else None,
        )
    steps = np.array(slide.downsamples[rules.level]) * rules.side  # level-0 pixels of a region, (x, y)
    if steps.min() < rules.patch + 2 * rules.margin:
        raise UsageError(
            f"{slide.name}: a region has {steps.min():.0f} pixels of level 0, a patch of {rules.patch} with margins of "
            f"{rules.margin} does not fit"
        )
    rgb, scale = slide.overview(level=max(0, len(slide.levels) - 2))
    mask = tissue(rgb, rules.least)
    x = (((np.arange(columns) + 0.5) * steps[0]) / scale[0]).astype(np.int64).clip(0, mask.shape[1] - 1)
    y = (((np.arange(rows) + 0.5) * steps[1]) / scale[1]).astype(np.int64).clip(0, mask.shape[0] - 1)
    found = np.argwhere(mask[np.ix_(y, x)])[:, ::-1]
    if not len(found):
        raise InputError(f"{slide.name}: no tissue was found on it")
    return found


def regions(slide: Slide, rules: Rules | None = None, *, seed: int = 0, readers: int = 0) -> Iterator[Region]:
    """Regions of a slide in a random order, with their patches, read by several threads.

    What is drawn follows from ``seed``, the slide's name and the place, whatever the number of threads.

    Parameters
    ----------
    readers : threads; 0 takes the processors that this process may use.

    Raises
    ------
    omlab.errors.InputError, omlab.errors.UsageError
        As :func:`cells` does, or the file is damaged.
    """
    rules = rules or Rules()
    places = cells(slide, rules)
    start = [seed, int.from_bytes(hashlib.sha256(slide.stem.encode()).digest()[:8], "big")]
    order = np.random.default_rng(start).permutation(len(places))

    def look(number: int) -> Region | None:
        return _region(slide, rules, places[number], np.random.default_rng([*start, int(number)]))

    kept = 0
    for found in ahead(look, order, workers=readers or usable_cpus()):
        if found is None:
            continue
        yield found
        kept += 1
        if kept == rules.regions:
            return


def _region(slide: Slide, rules: Rules, cell: NDArray[np.int64], generator: np.random.Generator) -> Region | None:
    steps = np.array(slide.downsamples[rules.level]) * rules.side
    corner = np.ceil(cell * steps - 1e-6).astype(np.int64)
    image = slide.region(int(corner[0]), int(corner[1]), rules.side, rules.side, rules.level)
    if brightness(image) >= rules.region_limit:
        return None
    patches = {}
    room = (steps - rules.patch - 2 * rules.margin).astype(np.int64)
    for number in range(rules.patches):
        x, y = corner + rules.margin + generator.integers(0, room, endpoint=True)
        patch = slide.region(int(x), int(y), rules.patch, rules.patch)
        if brightness(patch) < rules.patch_limit:
            patches[number] = patch
    small = Pillow.fromarray(image).resize((rules.saved, rules.saved), Pillow.Resampling.BICUBIC)
    return Region(place=(int(corner[0]), int(corner[1])), image=np.asarray(small), patches=patches)


def write(
    slide: Slide, folder: Path, rules: Rules | None = None, *, name: str | None = None, seed: int = 0, readers: int = 0
) -> dict[str, int]:
    """Cut a slide into ``region/NAME_I.png`` and ``patch/NAME_I_J.png``; returns {"regions": ..., "patches": ...}.

    Parameters
    ----------
    name : of the files; that of the slide without its ending if ``None``.

    Raises
    ------
    omlab.errors.InputError
        What :func:`regions` raises; all tissue is too bright.
    omlab.errors.OutputError
        A picture cannot be written.
    """
    name = name or slide.stem
    count = patches = 0
    for region in regions(slide, rules, seed=seed, readers=readers):
        for number, patch in region.patches.items():
            _png(folder / PATCH / f"{name}_{count}_{number}.png", patch)
        # Last, so that patches without a region are what an interruption left.
        _png(folder / REGION / f"{name}_{count}.png", region.image)
        count, patches = count + 1, patches + len(region.patches)
    if not count:
        raise InputError(f"{slide.name}: all of its tissue is too bright to be kept")
    return {"regions": count, "patches": patches}


def _png(path: Path, rgb: Rgb) -> None:
    try:
        with whole(path) as temporary:
            Pillow.fromarray(rgb).save(temporary, format="PNG", compress_level=3)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
