"""Frames of videos in which something is found, as upstream's code counts them: a frame with a polyp is found if any
box scores enough, wherever it lies."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator, Pair, Resampled
from omlab.report import Report, Value
from omlab.results import Detections

#: Videos from which on there are intervals.
FEW = 5
METRICS = ("f1", "precision", "recall")
_WHY = {
    "f1": "no frame has a polyp, and none was found",
    "precision": "nothing was found",
    "recall": "no frame has a polyp",
}


@attrs.frozen
class Frames:
    """Frames of a video: found and there, found alone, there alone."""

    name: str
    tp: int
    fp: int
    fn: int

    @classmethod
    def of(cls, name: str, scores: Mapping[int, float], truth: set[int], threshold: float) -> Frames:
        """From the best score of each frame with a box, and the frames with a polyp."""
        found = {frame for frame, score in scores.items() if score >= threshold}
        return cls(name, len(found & truth), len(found - truth), len(truth - found))


def rates(counts: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.float64]]:
    """:data:`METRICS` of counts [..., 3] (tp, fp, fn); NaN where one is undefined."""
    tp, fp, fn = np.moveaxis(counts.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"f1": 2 * tp / (2 * tp + fp + fn), "precision": tp / (tp + fp), "recall": tp / (tp + fn)}


class FrameDetection(Evaluator):
    """``omlab evaluate MODEL --on kumc-polyps:PATH --with frame-detection``, and ``omlab score frame-detection``."""

    def score(self, pairs: Iterable[Pair], options: Mapping[str, Any]) -> Report:
        """F1, precision and recall over the frames of all videos, with bootstrap intervals over the videos.

        A pair is refused where its answer is no detections in a video, or where not every frame was looked at.
        """
        videos = []
        for pair in pairs:
            try:
                videos.append(self._video(pair, options["threshold"]))
            except InputError as error:
                pair.refuse(error)
        return self._report(videos, options)

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Two CSV files with a column ``frame``: boxes with their ``score``, as ``omlab run`` writes them, and true
        boxes.

        Raises
        ------
        omlab.errors.InputError
            A file or column is missing, a cell is no number.
        omlab.errors.UsageError
            There are not two files.
        """
        if len(files) != 2:
            raise UsageError(
                f"frame-detection takes boxes and true boxes, found {len(files)} paths",
                remedy="omlab score frame-detection detections.csv truth.csv",
            )
        found = _best(_column(files[0], "frame"), _column(files[0], "score"))
        truth = {int(frame) for frame in _column(files[1], "frame")}
        return self._report([Frames.of(files[0].stem, found, truth, options["threshold"])], options)

    def resampled(self, reports: Sequence[Mapping[str, Any]], *, rounds: int, seed: int) -> Mapping[str, Resampled]:
        """The metrics over videos drawn with replacement."""
        tables = [{row["case"]: [row["tp"], row["fp"], row["fn"]] for row in report["cases"]} for report in reports]
        shared = [name for name in tables[0] if all(name in table for table in tables)]
        if not shared:
            return {}
        counts = np.array([[table[name] for name in shared] for table in tables])
        chosen = np.random.default_rng(seed).integers(0, len(shared), (rounds, len(shared)))
        whole, drawn = rates(counts.sum(axis=1)), rates(counts[:, chosen].sum(axis=2))
        return {name: Resampled(whole[name], drawn[name], len(shared)) for name in METRICS}

    @staticmethod
    def _video(pair: Pair, threshold: float) -> Frames:
        for what, boxes in (("answer", pair.prediction), ("reference", pair.reference)):
            if not isinstance(boxes, Detections) or boxes.frames is None:
                raise InputError(f"{pair.name}: the {what} is no detections in the frames of a video")
        looked = pair.prediction.measurements.get("frames")
        count = getattr(pair.scan(), "frame_count", None) if pair.scan is not None and looked is not None else None
        if count is not None and looked < count:  # type: ignore[operator]
            raise InputError(
                f"{pair.name}: {looked:g} of {count} frames were looked at", remedy="Run it on every frame"
            )
        found = _best(pair.prediction.frames, pair.prediction.scores)  # type: ignore[attr-defined]
        return Frames.of(pair.name, found, set(map(int, pair.reference.frames)), threshold)  # type: ignore[attr-defined]

    def _report(self, videos: Sequence[Frames], options: Mapping[str, Any]) -> Report:
        counts = np.array([[v.tp, v.fp, v.fn] for v in videos], np.int64).reshape(-1, 3)
        draws: dict[str, NDArray[np.float64]] = {}
        if len(videos) >= FEW and options["rounds"]:
            generator = np.random.default_rng(options["seed"])
            draws = rates(counts[generator.integers(0, len(videos), (options["rounds"], len(videos)))].sum(axis=1))
        summary = {
            name: _value(float(value), draws.get(name), len(videos), _WHY[name])
            for name, value in rates(counts.sum(axis=0)).items()
        }
        conventions = {"frame": "found if any box scores the threshold", "interval": "percentile bootstrap over videos"}
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary if videos else {},
            cases=[{"case": v.name, "tp": v.tp, "fp": v.fp, "fn": v.fn} for v in videos],
            options={**options, **conventions},
            environment={"plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__},
        )  # fmt: skip


def _value(value: float, draws: NDArray[np.float64] | None, count: int, why: str) -> Value:
    if np.isnan(value):
        return Value(value=None, n=count, undefined=why)
    if draws is None or np.isnan(draws).all():
        return Value(value=value, n=count)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Value(value=value, low=float(low), high=float(high), n=count)


def _best(frames: Iterable[Any], scores: Iterable[Any]) -> dict[int, float]:
    """Best score of each frame with a box."""
    found: dict[int, float] = {}
    for frame, score in zip(frames, scores, strict=True):
        found[int(frame)] = max(float(score), found.get(int(frame), 0.0))
    return found


def _column(path: Path, name: str) -> list[float]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if name not in (rows.fieldnames or ()):
                raise InputError(f"{path.name}: has no column '{name}', it has {', '.join(rows.fieldnames or ())}")
            return [float(row[name] or "") for row in rows]
    except ValueError as error:
        raise InputError(f"{path.name}: {error}, in the column '{name}'") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
