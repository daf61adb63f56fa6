"""From a scan to its label map: cut, resample, normalise, slide windows, restore. Rules of nnU-Net (Isensee et al.,
Nature Methods 2021), run as a stream: at no time are there scores of all classes for the whole scan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Volume
from omlab.errors import InputError, UsageError
from omlab.geometry import Geometry, Turn
from omlab.inference import resampling
from omlab.inference.cleaning import keep_largest
from omlab.inference.preparing import Scheme, foreground, nonzero_box, normalise
from omlab.inference.segmenting import Report, segment
from omlab.inference.sliding import Head
from omlab.model import Context
from omlab_stunet.plan import Plan

#: No patient is so long; a scan that is has a wrong spacing.
LONGEST_MM = 4000.0
#: Coarsest grid that a user may ask for.
MOST_SPACING_MM = 20.0
#: Cells of the network's grid that there must be along every axis.
FEWEST = 4
#: Windows without a voxel above this many Hounsfield units hold air and clothes.
AIR_HU = -500.0


@attrs.frozen(eq=False)
class Prepared:
    """A scan as the network sees it.

    Attributes
    ----------
    image : [1, a, b, c] float32, resampled and normalised; axes in the order of the plan.
    box : of the scan in that order, outside of which every voxel is exactly 0.
    apart : axis of thick slices across which scores are not interpolated on the way back.
    air : value of :data:`AIR_HU` after normalisation.
    """

    image: NDArray[np.float32]
    box: tuple[slice, ...]
    apart: int | None
    air: float


@attrs.frozen(eq=False)
class View:
    """The axes of a scan as the network sees them; made by :meth:`of`.

    Attributes
    ----------
    turn : of the scan's array to the orientation of the plan.
    order : of the axes z, y, x of the turned array.
    spacing_mm : along the axes that the network sees.
    """

    turn: Turn
    order: tuple[int, ...]
    spacing_mm: tuple[float, ...]

    @classmethod
    def of(cls, geometry: Geometry, plan: Plan) -> View:
        """Of a scan with this geometry."""
        turn = Turn.to(geometry, plan.orientation or geometry.orientation)
        reverse = turn.target.spacing_mm[::-1]
        return cls(turn, plan.transpose, tuple(reverse[axis] for axis in plan.transpose))

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """[i, j, k] of the scan as the network sees it; a view of the same memory."""
        return self.turn.apply(array).T.transpose(self.order)


def prepare(voxels: NDArray[Any], spacing_mm: Sequence[float], plan: Plan, name: str = "the scan") -> Prepared:
    """Cut, resample and normalise a scan.

    Parameters
    ----------
    voxels : [a, b, c], axes in the order of the plan (:meth:`View.apply`).

    Raises
    ------
    InputError
        All voxels are 0, or too few cells of the network's grid lie along an axis.
    """
    box = nonzero_box(voxels)
    if box is None:
        raise InputError(f"{name}: every voxel is 0, a CT was expected")
    inside = _finite(voxels[box])
    target = _target(inside.shape, spacing_mm, plan)
    if min(target) < FEWEST:
        extent = " x ".join(f"{n * s:.3g}" for n, s in zip(inside.shape, spacing_mm, strict=True))
        raise InputError(
            f"{name}: its content is {extent} mm large, which is {' x '.join(map(str, target))} voxels of "
            f"{' x '.join(f'{s:g}' for s in plan.spacing_mm)} mm; at least {FEWEST} are needed along every axis",
            remedy="Check its spacing, and that it is more than a slice",
        )
    apart = resampling.separate_axis(spacing_mm, plan.spacing_mm)
    if plan.version == 2:  # normalises first
        image = np.array(inside, np.float32)
        line = _Line(image, plan)
        image = _normalised(image, plan, voxels, box, None)
        air = line.after(image, AIR_HU)
        image = resampling.resample_image(image, target, order=3, apart=apart)
        return Prepared(np.ascontiguousarray(image)[None], box, apart, air)
    image = resampling.resample_image(inside, target, order=3, apart=apart)
    if image is inside or np.shares_memory(image, voxels):
        image = image.copy()
    image = np.ascontiguousarray(image)
    line = _Line(image, plan)
    image = _normalised(image, plan, voxels, box, apart)
    return Prepared(image[None], box, apart, line.after(image, AIR_HU))


class _Line:
    """The straight line that normalisation is between its bounds, from two values before and after."""

    def __init__(self, image: NDArray[np.float32], plan: Plan) -> None:
        self._bounds = (-np.inf, np.inf)
        if plan.scheme in (Scheme.CT, Scheme.CT2):
            self._bounds = (plan.intensities["percentile_00_5"], plan.intensities["percentile_99_5"])
        self._places = (int(image.argmin()), int(image.argmax()))
        self._before = [self._clip(float(image.flat[place])) for place in self._places]

    def _clip(self, value: float) -> float:
        return float(min(max(value, self._bounds[0]), self._bounds[1]))

    def after(self, image: NDArray[np.float32], value: float) -> float:
        """What ``value`` became."""
        low, high = self._before
        first, second = (float(image.flat[place]) for place in self._places)
        return first + (self._clip(value) - low) * (second - first) / (high - low) if high > low else first


def _target(shape: Sequence[int], spacing_mm: Sequence[float], plan: Plan) -> tuple[int, ...]:
    if plan.version == 2:  # each axis by Python's round, on the product in this order
        return tuple(round(s / t * n) for n, s, t in zip(shape, spacing_mm, plan.spacing_mm, strict=True))
    return resampling.target_shape(shape, spacing_mm, plan.spacing_mm)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """What is not finite as 0, as nnU-Net has it for what is not a number."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _normalised(
    image: NDArray[np.float32], plan: Plan, voxels: NDArray[Any], box: tuple[slice, ...], apart: int | None
) -> NDArray[np.float32]:
    mask = None
    if plan.use_mask:
        there = foreground(voxels[None])[box]
        marked = resampling.resample_labels(np.where(there, 0, -1).astype(np.int8), image.shape, order=1, apart=apart)
        mask = marked >= 0
    return normalise(image, plan.scheme, plan.intensities, mask=mask, version=plan.version)


def check_options(options: Mapping[str, Any], model: str = "stunet") -> None:
    """Raise :class:`omlab.errors.UsageError` for an option out of its range."""
    for name, fits, rule in (
        ("step", 0 < options["step"] <= 1, "is above 0 and at most 1"),
        ("spacing", 0 <= options["spacing"] <= MOST_SPACING_MM, f"is in mm, from 0 to {MOST_SPACING_MM:g}"),
        ("memory", options["memory"] > 0, "is in GB and above 0"),
    ):
        if not fits:
            raise UsageError(f"'{model}': option '{name}' {rule}, found {options[name]:g}")


@attrs.frozen(eq=False)
class Pipeline:
    """The whole way, with a user's options."""

    plan: Plan
    classes: int
    options: Mapping[str, Any]

    def run(self, case: Volume, context: Context) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """Label map of the network's classes on the grid of the scan, and what became of the windows."""
        check(case)
        plan = self.plan
        if plan.use_mask and self.options["skip_background"] == "air":
            raise UsageError(
                "skip-background 'air' needs to know air, and this network's normalisation hides what lies outside "
                "of the body",
                remedy="Leave it out: windows of a single value are run once anyway",
            )
        if self.options["spacing"]:
            plan = attrs.evolve(plan, spacing_mm=(self.options["spacing"],) * 3)
        view = View.of(case.geometry, plan)
        with context.stage("prepare"):
            prepared = prepare(view.apply(case.voxels), view.spacing_mm, plan, case.name)
            # The axes lie in memory as those of the scan, so that both are walked in the same order.
            labels = np.zeros_like(case.voxels, dtype=np.uint8)
            out = view.apply(labels)[prepared.box]
        engine = context.engines["window"]  # made or loaded here, which is no part of the stage
        with context.stage("restore"):
            run = Runner(engine, lambda done, total: context.progress("network", done, total, "windows"))
            report, skipped = self._segment(prepared, out, plan, run)
            if plan.largest:
                keep_largest(labels, plan.largest)
        context.share_out(run.seconds)
        measured = {
            "windows": float(report.windows), "windows_reused": float(report.reused),
            "windows_skipped": float(report.skipped),
        }  # fmt: skip
        if self.options["skip_background"] == "air":
            measured["skipped_ml"] = skipped * prod(plan.spacing_mm) / 1000.0
        return labels, measured

    def _segment(self, prepared: Prepared, out: NDArray[np.uint8], plan: Plan, run: Runner) -> tuple[Report, int]:
        image = prepared.image
        skip = _AirSkipper(image[0], prepared.air) if self.options["skip_background"] == "air" else None
        mode = self.options["mode"]
        target = out if mode == "normal" else np.zeros(image.shape[1:], np.uint8)
        report = segment(
            image, target, plan.patch, run, classes=self.classes, features=plan.dims[0], head=run.head,
            apart=prepared.apart, softmax=plan.version == 1,
            step=self.options["step"], mirror=plan.mirror if self.options["mirror"] else (),
            memory=self.options["memory"] * 1e9, skip=skip, reuse=self.options["skip_background"] != "off",
            done=run.done,
        )  # fmt: skip
        if mode != "normal":
            apart = prepared.apart if mode == "fast" else None
            out[...] = resampling.resample_labels(target, out.shape, order=1 if mode == "fast" else 0, apart=apart)
        return report, 0 if skip is None else skip.voxels()


class Runner:
    """An engine as the stitching calls it; keeps the head that came with the first window, and the time."""

    def __init__(self, engine: Callable[..., Mapping[str, NDArray[Any]]], done: Callable[[int, int], None]) -> None:
        self.seconds = 0.0
        self.done = done
        self._engine = engine
        self._head: Head | None = None

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        start = time.perf_counter()
        found = self._engine({"image": windows})
        self.seconds += time.perf_counter() - start
        if self._head is None:
            self._head = Head(found["weight"], found["bias"])
        return np.moveaxis(found["features"], -1, 1)

    def head(self) -> Head:
        """The last layer. Only after a window was run."""
        assert self._head is not None
        return self._head


class _AirSkipper:
    """Says of which windows nothing is above ``air``, and how many voxels they cover."""

    def __init__(self, image: NDArray[np.float32], air: float) -> None:
        self._image, self._air = image, air
        self._covered: NDArray[np.bool_] | None = None

    def __call__(self, place: tuple[slice, ...]) -> bool:
        if (self._image[place] > self._air).any():
            return False
        if self._covered is None:
            self._covered = np.zeros(self._image.shape, bool)
        self._covered[place] = True
        return True

    def voxels(self) -> int:
        """Voxels that some skipped window covers."""
        return 0 if self._covered is None else int(np.count_nonzero(self._covered))


def check(case: Volume) -> None:
    """Raise :class:`omlab.errors.InputError` for a scan whose spacing or extent makes no sense."""
    spacing = case.geometry.spacing_mm
    if not all(np.isfinite(s) and s > 0 for s in spacing) or not np.isfinite(case.geometry.affine).all():
        raise InputError(
            f"{case.name}: its spacing is {' x '.join(f'{s:g}' for s in spacing)} mm, expected numbers above 0",
            remedy="Convert it again from its DICOM series",
        )
    if case.voxels.ndim != 3 or case.voxels.dtype.kind not in "iuf":
        raise InputError(f"{case.name}: stunet takes one number a voxel, found {case.voxels.dtype}")
    if min(case.voxels.shape) < 2:
        raise InputError(
            f"{case.name}: has {' x '.join(map(str, case.voxels.shape))} voxels, which is a single slice; stunet takes "
            "volumes"
        )
    longest = max(n * s for n, s in zip(case.voxels.shape, spacing, strict=True))
    if longest > LONGEST_MM:
        raise InputError(
            f"{case.name}: is {longest:.0f} mm long, at most {LONGEST_MM:.0f} are expected",
            remedy="Check its spacing: it must be in millimetres",
        )


def statistics(
    labels: NDArray[np.uint8], voxels: NDArray[Any], values: Sequence[int], unit: str = "hu"
) -> dict[str, list[float | None]]:
    """Mean and standard deviation of the intensities of each structure of ``values``: columns ``mean_UNIT`` and
    ``sd_UNIT`` of a result's table; ``None`` for a structure without voxels. One pass, a plane at a time."""
    axis = int(np.argmax(labels.strides))
    bins = max(values) + 1
    counts, sums, squares = (np.zeros(bins) for _ in range(3))
    for found, scan in zip(np.moveaxis(labels, axis, 0), np.moveaxis(voxels, axis, 0), strict=True):
        if not found.any():
            continue
        flat = found.ravel(order="K")
        weights = np.nan_to_num(scan.ravel(order="K").astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        counts += np.bincount(flat, minlength=bins)[:bins]
        sums += np.bincount(flat, weights, minlength=bins)[:bins]
        squares += np.bincount(flat, weights * weights, minlength=bins)[:bins]
    mean: list[float | None] = []
    deviation: list[float | None] = []
    for value in values:
        there = counts[value]
        average = sums[value] / there if there else None
        mean.append(None if average is None else float(average))
        deviation.append(None if average is None else float(np.sqrt(max(0.0, squares[value] / there - average**2))))
    return {f"mean_{unit}": mean, f"sd_{unit}": deviation}


__all__ = ["Pipeline", "Prepared", "Runner", "View", "check", "check_options", "prepare", "statistics"]
