"""The evaluator: pairs of label maps to a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair, Resampled
from omlab.geometry import Geometry, Turn
from omlab.progress import Listener, Progress
from omlab.report import Report, Value
from omlab.results import Segmentation
from omlab_segmentation import averaging, metrics, surfaces
from omlab_segmentation.lattice import Lattice
from omlab_segmentation.worst import KEPT, Scan, Structure, Worst

NAMES = ("dice", "iou", "hd95_mm", "nsd")


class SegmentationEvaluator(Evaluator):
    """``omlab score segmentation PREDICTION REFERENCE``: two files, or two folders paired by file name."""

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """One row a case and structure; per structure, and over structures, the mean with a bootstrap interval.

        Raises
        ------
        omlab.errors.InputError
            Prediction and reference are on different grids.
        omlab.errors.UsageError
            The tolerance is negative, or the bootstrap has no round.
        """
        if options["rounds"] < 1 or not options["tolerance_mm"] >= 0:
            raise UsageError("segmentation takes rounds of 1 or more, and a tolerance of 0 mm or more")
        cases: list[_Case] = []
        warnings: list[str] = []
        worst = Worst()
        for pair in pairs:
            try:
                cases.append(self._case(pair, options, warnings, worst))
            except InputError as error:
                pair.refuse(error)
        rows = _completed(cases, options)
        summary: dict[str, Value] = {}
        for name in dict.fromkeys(row["structure"] for row in rows):
            of_structure = [row for row in rows if row["structure"] == name]
            for metric in NAMES:
                summary[f"{name}/{metric}"] = _mean([row[metric] for row in of_structure], metric, options)
            warnings += _infinite(name, [row["hd95_mm"] for row in of_structure])
        if len({row["structure"] for row in rows}) > 1:
            summary |= {f"{averaging.ALL}/{metric}": averaging.value(rows, metric, options) for metric in NAMES}
        conventions = {
            "surface_dice": "surface elements weighted by area",
            "interval": "percentile bootstrap of the mean over cases, 95 %; none below three cases",
        }
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=rows, warnings=warnings,
            options={**options, **conventions},
            environment={"plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__},
            illustration=worst.draw if worst else None, table=_table(summary, options),
        )  # fmt: skip

    def resampled(self, reports: Sequence[Mapping[str, Any]], *, rounds: int, seed: int) -> Mapping[str, Resampled]:
        """Means over structures; those of one structure are means over cases."""
        return averaging.resampled(reports, NAMES, rounds, seed)

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Two label maps, or two folders of them. Raises :class:`omlab.errors.UsageError` for anything else."""
        if len(files) != 2:
            raise UsageError(
                f"segmentation takes a prediction and a reference, found {len(files)} paths",
                remedy="omlab score segmentation PREDICTION REFERENCE",
            )
        return self.score(_read_pairs(*files, self.listener), options)

    def _case(self, pair: Pair, options: Mapping[str, Any], warnings: list[str], worst: Worst) -> _Case:
        prediction, reference = pair.prediction, pair.reference
        if not isinstance(prediction, Segmentation) or not isinstance(reference, Segmentation):
            raise InputError(f"{pair.name}: prediction and reference must be segmentations")
        a, b = _on_one_grid(pair.name, prediction, reference)
        if reference.geometry is not None:
            spacing = tuple(map(_as_written, reference.geometry.spacing_mm))
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
        named = options["binary"] or not (_unnamed(prediction) and _unnamed(reference))
        if not named:
            _hint_at_one_structure(pair.name, counts, warnings)
        found = _Found.of(a, b, spacing, voxels=options["hd95"] != "surfel")
        rows = []
        for value, name in structures.items():
            count = counts.get(value, metrics.Counts(0, 0, 0))
            elements, voxels = found.between(value)
            distance = metrics.hausdorff(elements if voxels is None else voxels, rule=options["hd95"])
            near = metrics.surface_dice(elements, options["tolerance_mm"])
            rows.append(_row(pair.name, name, value, count, (distance, near), volume, options))
        shown = _Shown(order, reference.geometry)
        scan = cache(partial(_scan, pair, reference, order, shown))
        for row in sorted(rows, key=lambda row: row["dice"])[:KEPT]:
            if worst.takes(row["dice"]):
                box = shown.box(found.box(row["label"]), b.shape)
                maps = shown.array(a), shown.array(b)
                structure = Structure(*maps, row["label"], box, shown.vector(spacing), scan())
                worst.add(pair.name, row["structure"], row["dice"], structure)
        return _Case(pair.name, rows, volume, named)


@attrs.frozen
class _Case:
    """Rows of a case; the volume of a voxel in ml; whether its files say which structures there are."""

    name: str
    rows: list[dict[str, Any]]
    volume: float | None
    named: bool


def _row(
    case: str, name: str, label: int, count: metrics.Counts, surface: tuple[float, float], volume: float | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Figures of a structure; ``surface`` is HD95 and surface Dice."""
    row: dict[str, Any] = {"case": case, "structure": name, "label": label, "dice": count.dice, "iou": count.iou}
    row |= {"hd95_mm": surface[0], "nsd": surface[1]}
    if options["both_empty"] == "one" and not count.prediction and not count.reference:
        row |= {"dice": 1.0, "iou": 1.0, "nsd": 1.0}
    row |= {"voxels_prediction": count.prediction, "voxels_reference": count.reference}
    if volume is not None:
        row |= {"ml_prediction": count.prediction * volume, "ml_reference": count.reference * volume}
    return row


def _completed(cases: Sequence[_Case], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of all cases. Files without names tell only the labels that they have voxels of, so what one of them has is
    looked for in all: where neither side has it, both are empty by the rule in force. Nothing at all is label 1."""
    unnamed = [case for case in cases if not case.named]
    known = {row["label"]: row["structure"] for case in unnamed for row in case.rows} or {1: "label 1"}
    nothing, undefined = metrics.Counts(0, 0, 0), (math.nan, math.nan)
    rows: list[dict[str, Any]] = []
    for case in cases:
        has = {row["label"] for row in case.rows}
        absent = [] if case.named else [label for label in known if label not in has]
        rows += case.rows
        rows += [_row(case.name, known[v], v, nothing, undefined, case.volume, options) for v in absent]
    return rows


def _unnamed(given: Segmentation) -> bool:
    """Has the file no names of its own? Its reader calls each label that it finds by its number then."""
    return all(label.name == f"label {label.value}" for label in given.structures)


def _hint_at_one_structure(case: str, counts: Mapping[int, metrics.Counts], warnings: list[str]) -> None:
    sides = [[v for v, n in counts.items() if getattr(n, side)] for side in ("prediction", "reference")]
    if all(len(side) == 1 for side in sides) and sides[0] != sides[1]:
        _once(
            warnings,
            f"{case}: the prediction has only the label {sides[0][0]}, the reference only {sides[1][0]}; if they are "
            "one structure, use --binary",
        )


def _infinite(name: str, distances: Sequence[float]) -> list[str]:
    """What to say of a structure that is empty on one side in some cases."""
    count = sum(map(math.isinf, distances))
    finite = [d for d in distances if math.isfinite(d)]
    if not count or not finite:
        return []
    return [
        f"{name}: one side is empty in {count} of {count + len(finite)} cases, so the mean of hd95_mm is infinite; "
        f"over the others it is {sum(finite) / len(finite):.4g} mm"
    ]


def _as_written(spacing: float) -> float:
    """A spacing as its author wrote it: files hold it as float32, whose 0.8 is not 0.8, and a tolerance of 0.8 mm must
    still hold a distance of one voxel."""
    return float(str(np.float32(spacing)))


def _scan(pair: Pair, reference: Segmentation, order: Sequence[int], shown: _Shown) -> Scan | None:
    """What the model looked at, on the axes of a picture; ``None`` where it is not known, or on another grid."""
    from omlab.cases import Image, Volume
    from omlab.results.picture import window

    case = pair.scan() if pair.scan is not None else None
    if isinstance(case, Volume) and reference.geometry is not None:
        turn = Turn.to(case.geometry, reference.geometry.orientation)
        if turn.target.same_grid(reference.geometry):
            return Scan(shown.array(turn.apply(case.voxels).transpose(order)), window(case))
    if isinstance(case, Image) and case.pixels.shape[:2] == reference.labels.shape:
        return Scan(shown.array(case.rgb8().transpose(*order, 2)))
    return None


@attrs.frozen(eq=False)
class _Found:
    """Surfaces of all structures of both label maps."""

    elements: metrics.Between
    voxels: metrics.Between | None
    inside: tuple[slice, ...]

    @classmethod
    def of(cls, a: Any, b: Any, spacing: tuple[float, ...], *, voxels: bool) -> _Found:
        inside = surfaces.content(a, b)
        a, b = a[inside], b[inside]
        lattice = Lattice.of(a.shape, spacing)
        placed = lattice.filled(a), lattice.filled(b)
        elements = metrics.Between.on(lattice, *placed, surfaces.elements)
        return cls(elements, metrics.Between.on(lattice, *placed, surfaces.voxels) if voxels else None, inside)

    def between(self, label: int) -> tuple[metrics.Surfaces, metrics.Surfaces | None]:
        """Distances between surface elements of a structure, and between surface voxels where they are wanted."""
        return self.elements[label], None if self.voxels is None else self.voxels[label]

    def box(self, label: int) -> tuple[slice, ...]:
        """Box of a structure in prediction and reference, which must not both be empty."""
        given = (self.elements.prediction, self.elements.reference)
        places = np.concatenate([surface.lattice.indices(surface.places[surface.of(label)]) for surface in given])
        ends = zip(self.inside, places.min(axis=0), places.max(axis=0), strict=True)
        return tuple(slice(part.start + int(low), part.start + int(high)) for part, low, high in ends)


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
                f"{name}: prediction and reference lie on different grids: "
                f"{turn.target.difference(reference.geometry, 'the prediction', 'the reference')}",
                remedy="Resample one onto the other first; omlab never does so silently",
            )
        return turn.apply(a), b
    if a.shape != b.shape:
        raise InputError(f"{name}: prediction and reference have different shapes, {a.shape} and {b.shape}")
    return a, b


def _memory_order(array: Any) -> list[int]:
    """Axes, the slowest in memory first; no figure depends on the order, but the time does."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


class _Shown:
    """From arrays whose axes are in ``order`` to the patient's R, A and S; an image stays as it is."""

    def __init__(self, order: Sequence[int], geometry: Geometry | None) -> None:
        letters = [("LR", "R"), ("PA", "A"), ("IS", "S")]
        axes = list(range(len(order)))
        self._flipped: tuple[int, ...] = ()
        if geometry is not None and len(order) == 3:
            orientation = geometry.orientation
            axes = [next(n for n, letter in enumerate(orientation) if letter in pair) for pair, _ in letters]
            self._flipped = tuple(
                place for place, (_, wanted) in enumerate(letters) if orientation[axes[place]] != wanted
            )
        self._places = [list(order).index(axis) for axis in axes]

    def array(self, given: Any) -> Any:
        """A view; axes beyond those of ``order`` stay."""
        more = range(len(self._places), given.ndim)
        return np.flip(given.transpose(*self._places, *more), self._flipped)

    def vector(self, given: Sequence[float]) -> tuple[float, ...]:
        """One entry an axis."""
        return tuple(given[place] for place in self._places)

    def box(self, given: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
        """A part of an array of a shape."""
        parts = [(given[place], shape[place]) for place in self._places]
        return tuple(
            slice(size - part.stop, size - part.start) if axis in self._flipped else part
            for axis, (part, size) in enumerate(parts)
        )


def _structures(prediction: Segmentation, reference: Segmentation, present: Iterable[int]) -> dict[int, str]:
    """Value -> name of all structures that either side names or has voxels of; the reference's names first, but a
    file without names takes the other's."""
    named: dict[int, str] = {}
    for label in (*prediction.structures, *reference.structures):
        if label.value not in named or label.name != f"label {label.value}":
            named[label.value] = label.name
    return {value: named.get(value, f"label {value}") for value in sorted({*named, *present})}


def _table(summary: Mapping[str, Value], options: Mapping[str, Any]) -> list[list[str]]:
    """A row a structure, each figure with its interval."""
    head = ["structure", "Dice", "IoU", "HD95 in mm", f"NSD at {options['tolerance_mm']:g} mm", "cases"]
    rows = [head]
    for name in dict.fromkeys(key.rpartition("/")[0] for key in summary):
        values = [summary[f"{name}/{metric}"] for metric in NAMES]
        rows.append([name, *map(_shown, values), str(max(value.n for value in values))])
    return rows


def _shown(value: Value) -> str:
    if value.value is None:
        return "undefined"
    bounds = f" ({value.low:.3f} to {value.high:.3f})" if value.low is not None and value.high is not None else ""
    return f"{value.value:.4f}{bounds}"


def _read_pairs(prediction: Path, reference: Path, listener: Listener) -> Iterator[Pair]:
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
    for number, (stem, path) in enumerate(predictions.items()):
        listener(Progress(stem, "score", number, len(predictions), "cases"))
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
