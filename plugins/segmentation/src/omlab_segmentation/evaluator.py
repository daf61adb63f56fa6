"""The evaluator: pairs of label maps to a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair
from omlab.geometry import Geometry, Turn
from omlab.report import Report, Value
from omlab.results import Segmentation
from omlab_segmentation import metrics, surfaces
from omlab_segmentation.lattice import Lattice
from omlab_segmentation.worst import KEPT, Worst

NAMES = ("dice", "iou", "hd95_mm", "nsd")


class SegmentationEvaluator(Evaluator):
    """``omlab score segmentation PREDICTION REFERENCE``: two files, or two folders paired by file name."""

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """One row a case and structure, and per structure the mean with a bootstrap interval.

        Raises
        ------
        omlab.errors.InputError
            Prediction and reference are on different grids.
        """
        rows: list[dict[str, Any]] = []
        warnings: list[str] = []
        worst = Worst()
        for pair in pairs:
            rows += self._case(pair, options, warnings, worst)
        summary: dict[str, Value] = {}
        for name in dict.fromkeys(row["structure"] for row in rows):
            of_structure = [row for row in rows if row["structure"] == name]
            for metric in NAMES:
                summary[f"{name}/{metric}"] = _mean([row[metric] for row in of_structure], metric, options)
        conventions = {
            "surface_dice": "surface elements weighted by area",
            "interval": "percentile bootstrap of the mean over cases, 95 %; none below three cases",
        }
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=rows, warnings=warnings,
            options={**options, **conventions},
            environment={"plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__},
            illustration=worst.draw if worst else None,
        )  # fmt: skip

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Two label maps, or two folders of them. Raises :class:`omlab.errors.UsageError` for anything else."""
        if len(files) != 2:
            raise UsageError(
                f"segmentation takes a prediction and a reference, found {len(files)} paths",
                remedy="omlab score segmentation PREDICTION REFERENCE",
            )
        return self.score(_read_pairs(*files), options)

    def _case(self, pair: Pair, options: Mapping[str, Any], warnings: list[str], worst: Worst) -> list[dict[str, Any]]:
        prediction, reference = pair.prediction, pair.reference
        if not isinstance(prediction, Segmentation) or not isinstance(reference, Segmentation):
            raise InputError(f"{pair.name}: prediction and reference must be segmentations")
        a, b = _on_one_grid(pair.name, prediction, reference)
        if reference.geometry is not None:
            spacing: tuple[float, ...] = reference.geometry.spacing_mm
            volume = reference.geometry.voxel_volume_mm3 / 1000.0
        else:
            spacing, volume = (1.0,) * b.ndim, None
            _once(warnings, "images have no spacing here: distances are in pixels")
        if options["binary"]:
            a, b = (a > 0).view(np.uint8), (b > 0).view(np.uint8)
        order = _memory_order(b)
        a, b, spacing = a.transpose(order), b.transpose(order), tuple(spacing[axis] for axis in order)
        counts = metrics.joint_counts(a, b)
        structures = {1: "foreground"} if options["binary"] else _structures(prediction, reference, counts)
        found = _Found.of(a, b, spacing, voxels=options["hd95"] != "surfel")
        rows = []
        for value, name in structures.items():
            count = counts.get(value, metrics.Counts(0, 0, 0))
            row: dict[str, Any] = {"case": pair.name, "structure": name, "label": value}
            row |= {"dice": count.dice, "iou": count.iou}
            elements, voxels = found.between(value)
            rule = options["hd95"]
            row["hd95_mm"] = metrics.hausdorff(elements if voxels is None else voxels, rule=rule)
            row["nsd"] = metrics.surface_dice(elements, options["tolerance_mm"])
            if options["both_empty"] == "one" and not count.prediction and not count.reference:
                row |= {"dice": 1.0, "iou": 1.0, "nsd": 1.0}
            row |= {"voxels_prediction": count.prediction, "voxels_reference": count.reference}
            if volume is not None:
                row |= {"ml_prediction": count.prediction * volume, "ml_reference": count.reference * volume}
            rows.append(row)
        for row in sorted(rows, key=lambda row: row["dice"])[:KEPT]:
            if worst.takes(row["dice"]):
                prediction_cut, reference_cut = found.cut(row["label"])
                shown = [_as_shown(cut, order, reference.geometry) for cut in (prediction_cut, reference_cut)]
                sides = _as_shown(np.asarray(spacing), order, reference.geometry)
                worst.add(pair.name, row["structure"], row["dice"], shown[0], shown[1], tuple(sides.tolist()))
        return rows


@attrs.frozen(eq=False)
class _Found:
    """Surfaces of all structures of both label maps."""

    elements: metrics.Between
    voxels: metrics.Between | None
    maps: tuple[Any, Any]

    @classmethod
    def of(cls, a: Any, b: Any, spacing: tuple[float, ...], *, voxels: bool) -> _Found:
        box = surfaces.content(a, b)
        a, b = a[box], b[box]
        lattice = Lattice.of(a.shape, spacing)
        placed = lattice.filled(a), lattice.filled(b)
        elements = metrics.Between.on(lattice, *placed, surfaces.elements)
        return cls(elements, metrics.Between.on(lattice, *placed, surfaces.voxels) if voxels else None, (a, b))

    def between(self, label: int) -> tuple[metrics.Surfaces, metrics.Surfaces | None]:
        """Distances between surface elements of a structure, and between surface voxels where they are wanted."""
        return self.elements[label], None if self.voxels is None else self.voxels[label]

    def cut(self, label: int) -> tuple[Any, Any]:
        """Masks of a structure in prediction and reference within the box of both, which must not be empty."""
        given = (self.elements.prediction, self.elements.reference)
        places = np.concatenate([surface.lattice.indices(surface.places[surface.of(label)]) for surface in given])
        box = tuple(slice(int(a), int(b)) for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True))
        return self.maps[0][box] == label, self.maps[1][box] == label


def _once(warnings: list[str], text: str) -> None:
    if text not in warnings:
        warnings.append(text)


def _on_one_grid(name: str, prediction: Segmentation, reference: Segmentation) -> tuple[Any, Any]:
    """Both arrays in the reference's axis order. A prediction on the same grid in another orientation is turned."""
    a, b = prediction.labels, reference.labels
    if prediction.geometry is not None and reference.geometry is not None:
        turn = Turn.to(prediction.geometry, reference.geometry.orientation)
        if not turn.target.same_grid(reference.geometry):
            raise InputError(
                f"{name}: prediction and reference lie on different grids: shapes {a.shape} and {b.shape}, spacing "
                f"{_mm(prediction.geometry.spacing_mm)} and {_mm(reference.geometry.spacing_mm)}",
                remedy="Resample one onto the other first; omlab never does so silently",
            )
        return turn.apply(a), b
    if a.shape != b.shape:
        raise InputError(f"{name}: prediction and reference have different shapes, {a.shape} and {b.shape}")
    return a, b


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"


def _memory_order(array: Any) -> list[int]:
    """Axes, the slowest in memory first; no figure depends on the order, but the time does."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def _as_shown(given: Any, order: Sequence[int], geometry: Geometry | None) -> Any:
    """Part of a label map whose axes are in ``order``, with the axes as the patient's R, A and S; of an image as it is.
    A vector with one entry an axis likewise."""
    letters = [("LR", "R"), ("PA", "A"), ("IS", "S")]
    axes = list(range(len(order)))
    turned: list[int] = []
    if geometry is not None and len(order) == 3:
        orientation = geometry.orientation
        axes = [next(n for n, letter in enumerate(orientation) if letter in pair) for pair, _ in letters]
        turned = [place for place, (_, wanted) in enumerate(letters) if orientation[axes[place]] != wanted]
    places = [list(order).index(axis) for axis in axes]
    return given[places] if given.ndim == 1 else np.flip(given.transpose(places), turned)


def _structures(prediction: Segmentation, reference: Segmentation, present: Iterable[int]) -> dict[int, str]:
    """Value -> name of all structures that either side names or has voxels of; the reference's names first, but a
    file without names takes the other's."""
    named: dict[int, str] = {}
    for label in (*prediction.structures, *reference.structures):
        if label.value not in named or label.name != f"label {label.value}":
            named[label.value] = label.name
    return {value: named.get(value, f"label {value}") for value in sorted({*named, *present})}


def _read_pairs(prediction: Path, reference: Path) -> Iterator[Pair]:
    from omlab.results import read_segmentation

    for path in (prediction, reference):
        if not path.exists():
            raise InputError(f"{path} does not exist")
    if prediction.is_dir() != reference.is_dir():
        raise UsageError(f"{prediction} and {reference}: expected two files or two folders")
    if not prediction.is_dir():
        yield Pair(
            name=prediction.name, prediction=read_segmentation(prediction), reference=read_segmentation(reference)
        )
        return
    predictions = {_stem(p): p for p in sorted(prediction.iterdir()) if p.is_file() and not p.name.startswith(".")}
    references = {_stem(p): p for p in sorted(reference.iterdir()) if p.is_file() and not p.name.startswith(".")}
    unpaired = sorted(predictions.keys() ^ references.keys())
    if unpaired:
        raise InputError(
            f"{prediction} and {reference}: {len(unpaired)} files have no partner of their name, first '{unpaired[0]}'",
            remedy="Name predictions like their references",
        )
    if not predictions:
        raise InputError(f"{prediction} holds no files")
    for stem, path in predictions.items():
        yield Pair(name=stem, prediction=read_segmentation(path), reference=read_segmentation(references[stem]))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _mean(values: list[float], metric: str, options: Mapping[str, Any]) -> Value:
    """Mean over the cases in which the metric is defined, with a bootstrap interval."""
    unit = "mm" if metric.endswith("_mm") else ""
    defined = np.array([v for v in values if not math.isnan(v)])
    if not len(defined):
        return Value(value=None, n=0, unit=unit, undefined="neither mask has a voxel of it in any case")
    if np.isinf(defined).any() or len(defined) < 3:
        return Value(value=float(defined.mean()), n=len(defined), unit=unit)
    generator = np.random.default_rng(options["seed"])
    draws = generator.integers(0, len(defined), (options["rounds"], len(defined)))
    low, high = np.percentile(defined[draws].mean(axis=1), [2.5, 97.5])
    return Value(value=float(defined.mean()), low=float(low), high=float(high), n=len(defined), unit=unit)
