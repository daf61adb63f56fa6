"""Prompts of the platform to clicks in cubes of a scan, and the decoder's answers to one label map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Volume
from omlab.errors import InputError, UsageError
from omlab.model import Context
from omlab.prompts import Object
from omlab.results import Label, Segmentation
from omlab.results.colours import colour_of
from omlab_sam_med3d.grid import Begin, Grid, box_of, centred, normalised
from omlab_sam_med3d.predictor import MOST_POINTS, Predictor, as_logits, upsampled
from omlab_sam_med3d.windows import STRIDE, windows_of

#: A cube is kept for a label as long as its points are so many voxels within.
MARGIN = 16
#: Values below and above are clipped by the option ``clip-ct``, in Hounsfield units, as in upstream's training.
CT_RANGE = (-1000.0, 1000.0)
Places = NDArray[np.int64]


@attrs.define(eq=False)
class Memory:
    """What a session knows of a label: its cube, all clicks, and the logits of each window by where it begins."""

    begin: Begin
    places: Places
    labels: NDArray[np.int64]
    logits: dict[Begin, NDArray[np.float32]]


class SamSession:
    """A scan that is asked again and again. Each cube is shown to the encoder once.

    Everything happens in RAS+ order, so that it does not matter how a file stores its axes.

    Parameters
    ----------
    size : side of the cube in voxels of ``spacing_mm``.
    """

    def __init__(self, case: Volume, size: int, spacing_mm: float) -> None:
        self._case, self._size = case, size
        self._turn = case.geometry.canonical()
        self._voxels = self._turn.apply(case.voxels)
        self._grid = Grid.of(self._turn.target, (spacing_mm,) * 3)
        self._predictors: dict[tuple[Begin, bool], Predictor | None] = {}
        self._memory: dict[str, Memory] = {}

    def answer(self, context: Context) -> Segmentation:
        """One structure for each label. A voxel that several claim goes to the one whose logit is the greatest there.

        Raises
        ------
        UsageError
            Nothing is asked; a label has only points of the background, too many, or nothing to refine.
        InputError
            Its points do not fit into one cube; the cube holds no image.
        """
        if context.prompts is None:
            raise UsageError("no prompt is given", remedy="Give a point or a mask")
        grouped: dict[str, list[Object]] = {}
        for item in context.prompts.objects:
            grouped.setdefault(item.label, []).append(item)
        threshold = float(context.options["threshold"])
        level = math.log(threshold / (1 - threshold))
        shape = self._case.geometry.shape
        labels = np.zeros(shape, np.uint8 if len(grouped) < 256 else np.uint16)
        # Zeros are not touched where nothing is written, so this costs what the cubes cover.
        best = np.zeros(self._turn.target.shape, np.float32) if len(grouped) > 1 else None
        measurements: dict[str, float] = {}
        for value, (label, items) in enumerate(grouped.items(), 1):
            memory, mask = self._asked(label, items, context)
            region, begin, quality = self._region(label, memory, mask, context)
            with context.stage("restore"):
                self._write(self._turn.apply(labels), best, value, region - np.float32(level), begin)
            self._memory[label] = memory
            measurements[f"{label}_predicted_iou"] = quality
        return Segmentation(
            labels=labels, structures=_structures(list(grouped)), geometry=self._case.geometry,
            measurements=measurements,
        )  # fmt: skip

    def _asked(self, label: str, items: Sequence[Object], context: Context) -> tuple[Memory, NDArray[np.bool_] | None]:
        """Clicks of a label in voxels of the grid, where its cube begins, and its mask on the scan in RAS+ order."""
        points = [point for item in items for point in item.points]
        at = self._grid.into(self._turned([p.at for p in points]))
        places = np.clip(np.floor(at + 0.5), 0, np.array(self._grid.shape) - 1).astype(np.int64)
        kinds = np.array([int(p.positive) for p in points], np.int64)
        masks = [item.mask.array for item in items if item.mask is not None and item.mask.array is not None]
        mask = self._turn.apply(np.logical_or.reduce(masks)) if masks else None
        before = self._memory.get(label)
        if context.options["refine"]:
            if before is None:
                raise UsageError(
                    f"'{label}' cannot be refined: the session has not answered for it",
                    remedy="Ask without refine first",
                )
            if not self._within(places, before.begin, 0):
                raise InputError(
                    f"{self._case.name}: a new point of '{label}' lies outside of the cube that was looked at",
                    remedy="Ask without refine, with all points",
                )
            memory = Memory(
                before.begin, np.concatenate([before.places, places]), np.concatenate([before.labels, kinds]),
                dict(before.logits),
            )  # fmt: skip
        else:
            memory = Memory(self._begin(label, places, kinds, mask, before), places, kinds, {})
        if len(memory.places) >= MOST_POINTS:
            raise UsageError(
                f"'{label}' has {len(memory.places)} points, at most {MOST_POINTS - 1} are possible",
                remedy="Give fewer",
            )
        return memory, mask

    def _turned(self, places: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Positions on the file's grid, [n, 3], in RAS+ order."""
        at = np.array(places, np.float64).reshape(-1, 3)[:, list(self._turn.order)]
        last = np.array(self._turn.target.shape) - 1
        return np.where(self._turn.flipped, last - at, at)

    def _begin(
        self, label: str, places: Places, kinds: NDArray[np.int64], mask: NDArray[np.bool_] | None,
        before: Memory | None,
    ) -> Begin:  # fmt: skip
        """Where the cube begins: around the points that belong to the label and its mask; where it was, while they
        are well within."""
        own = places[kinds == 1]
        spread = int(np.ptp(own, axis=0).max()) + 1 if len(own) else 0
        if spread > self._size:
            spacing = max(self._grid.spacing)
            raise InputError(
                f"{self._case.name}: points of '{label}' lie {spread * spacing:.0f} mm apart, the network sees "
                f"{self._size * spacing:.0f} mm at once",
                remedy="Give them labels of their own, and join the structures afterwards",
            )
        if mask is not None:
            box = box_of(mask)
            assert box is not None  # empty masks are refused where prompts are placed
            corners = np.floor(self._grid.into(np.stack(box)) + 0.5).astype(np.int64)
            corners = np.clip(corners, 0, np.array(self._grid.shape) - 1)
            # A mask may be larger than the cube, which then shows its middle, or the points; points must fit.
            if len(own) == 0 or np.ptp(np.concatenate([own, corners]), axis=0).max() < self._size:
                own = np.concatenate([own, corners])
        if not len(own):
            raise UsageError(
                f"'{label}' has only points that do not belong to it",
                remedy="Give at least one point that does, or a mask",
            )
        if mask is None and before is not None and self._within(own, before.begin, self._size // (128 // MARGIN)):
            return before.begin
        return centred(own.min(axis=0), own.max(axis=0), (self._size,) * 3)

    def _within(self, places: Places, begin: Begin, margin: int) -> bool:
        inside = places - np.array(begin)
        return bool(((inside >= margin) & (inside < self._size - margin)).all())

    def _region(
        self, label: str, memory: Memory, mask: NDArray[np.bool_] | None, context: Context
    ) -> tuple[NDArray[np.float32], Begin, float]:
        """Logits of the cube, or of it and the windows around it, where they begin, and the predicted quality."""
        wide = context.options["extent"] == "windows"
        reach = STRIDE * self._size // 128 if wide else 0
        begin = (memory.begin[0] - reach, memory.begin[1] - reach, memory.begin[2] - reach)
        region = np.full((self._size + 2 * reach,) * 3, -np.inf, np.float32)
        quality = math.nan
        windows = list(
            windows_of(self._grid.shape, memory.begin, (self._size,) * 3, around=wide, stride=reach or STRIDE)
        )
        for number, window in enumerate(windows):
            context.progress("network", number, len(windows), "windows")
            if window.empty and window.begin != memory.begin:
                continue
            asked = self._clicks(memory, mask, window.begin)
            if asked is None:
                continue
            predictor = self._predictor(window.begin, context)
            if predictor is None:
                if window.begin != memory.begin:
                    continue
                raise InputError(
                    f"{self._case.name}: around '{label}' are no voxels above 0 that differ, from which the network "
                    "takes what is bright and dark",
                    remedy="Check the place of the prompt; a scan whose values are all below 0 must be shifted",
                )
            with context.stage("network"):
                places, kinds, start = asked
                one_by_one = bool(context.options["one_by_one"]) and not context.options["refine"]
                answer = predictor.refine(places, kinds, start, one_by_one=one_by_one)
            memory.logits[window.begin] = answer.low
            if window.begin == memory.begin:
                quality = answer.quality
            with context.stage("restore"):
                inside = tuple(slice(a, b) for a, b in window.cube)
                first = [b - r for b, r in zip(window.begin, begin, strict=True)]
                outside = tuple(slice(f + a, f + b) for f, (a, b) in zip(first, window.cube, strict=True))
                region[outside] = upsampled(answer.low)[inside]
        return region, begin, quality

    def _clicks(
        self, memory: Memory, mask: NDArray[np.bool_] | None, begin: Begin
    ) -> tuple[Places, NDArray[np.int64], NDArray[np.float32] | None] | None:
        """Clicks in voxels of a window, and the logits to start from; ``None`` where nothing belongs to it."""
        places = memory.places - np.array(begin)
        inside = ((places >= 0) & (places < self._size)).all(axis=1)
        places, kinds = places[inside], memory.labels[inside]
        start = memory.logits.get(begin)
        if mask is not None:
            there = self._grid.labels(mask, begin, (self._size,) * 3).astype(bool)
            start = as_logits(there) if there.any() else None
        return (places, kinds, start) if (kinds == 1).any() or start is not None else None

    def _predictor(self, begin: Begin, context: Context) -> Predictor | None:
        """A cube that the encoder has seen; ``None`` for one without an image."""
        clip = bool(context.options["clip_ct"])
        if (begin, clip) not in self._predictors:
            with context.stage("prepare"):
                cube = self._grid.image(self._voxels, begin, (self._size,) * 3)
                image = normalised(np.clip(cube, *CT_RANGE) if clip else cube)
            predictor = None
            if image is not None:
                encoder, decoder = context.engines["encoder"], context.engines["decoder"]  # made here, in no stage
                with context.stage("network"):
                    embedding = encoder({"image": image[None, None]})["image_embeddings"]
                predictor = Predictor(decoder, embedding, self._size)
            self._predictors[begin, clip] = predictor
        return self._predictors[begin, clip]

    def _write(
        self, labels: NDArray[Any], best: NDArray[np.float32] | None, value: int, region: NDArray[np.float32],
        begin: Begin,
    ) -> None:  # fmt: skip
        """Logits of a region, minus the level of the threshold, onto the scan in RAS+ order: plane by plane,
        since a fine scan has many more voxels than the region."""
        box, (first, *others), order = self._grid.restore(begin, region.shape)
        turned = region.transpose(order)
        for plane, index in zip(range(box[0].start, box[0].stop), first.tolist(), strict=True):
            logits = turned[index][np.ix_(*others)]
            place = (plane, *box[1:])
            wins = logits > (0 if best is None else best[place])
            labels[place][wins] = value
            if best is not None:
                best[place][wins] = logits[wins]


def _structures(names: Sequence[str]) -> list[Label]:
    return [Label(value=value, name=name, colour=colour_of(value)) for value, name in enumerate(names, 1)]
