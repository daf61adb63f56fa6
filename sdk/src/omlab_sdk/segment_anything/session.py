"""Prompts of the platform to queries of the decoder, and its answers to one label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.errors import UsageError
from omlab.model import Context
from omlab.prompts import Box, Object
from omlab.results import Label, Segmentation
from omlab.results.colours import colour_of
from omlab_sdk.segment_anything.everything import everything
from omlab_sdk.segment_anything.predictor import MOST_POINTS, Predictor, Query, logit, stability


class SamSession:
    """A picture that the encoder has seen. Masks that it gave are kept, so that the next answer may start from
    them (option ``refine``)."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._last: dict[str, list[NDArray[np.float32]]] = {}

    def answer(self, context: Context) -> Segmentation:
        """One structure for each label, or for each thing found by ``everything``.

        A pixel that several labels claim goes to the one whose logit is the greatest there.
        """
        threshold = float(context.options["threshold"])
        if context.options["everything"]:
            return self._everything(context, threshold)
        if context.prompts is None:
            raise UsageError("no prompt is given", remedy="Give a point, a box or a mask, or everything=True")
        grouped = by_label(context.prompts.objects)
        queries = {label: self._queries(label, items, context.options) for label, items in grouped.items()}
        with context.stage("network"):
            answer = self.predictor.predict(
                [query for group in queries.values() for query in group],
                multimask=bool(context.options["multimask"]), rounds=int(context.options["rounds"]),
            )  # fmt: skip
        measurements: dict[str, float] = {}
        with context.stage("restore"):
            shape = self.predictor.frame.shape
            labels = np.zeros(shape, np.uint8 if len(queries) < 256 else np.uint16)
            best = np.full(shape, self.predictor.level(threshold), np.float32)
            start = 0
            for value, (label, group) in enumerate(queries.items(), 1):
                low = answer.low[start : start + len(group)]
                qualities = answer.qualities[start : start + len(group)]
                start += len(group)
                scores = self.predictor.restore(low).max(axis=0)
                wins = scores > best
                labels[wins], best[wins] = value, scores[wins]
                self._last[label] = [self.predictor.as_mask(one) for one in low]
                # Of a label with several parts the weakest counts: a person should look there.
                measurements[f"{label}_predicted_iou"] = float(qualities.min())
                measurements[f"{label}_stability"] = float(stability(low, logit(threshold)).min())
        return Segmentation(labels=labels, structures=_structures(list(queries)), measurements=measurements)

    def _queries(self, label: str, items: Sequence[Object], options: Mapping[str, Any]) -> list[Query]:
        queries = [query for item in items for query in self._of_object(item)]
        if options["refine"]:
            last = self._last.get(label, [])
            if len(last) != len(queries):
                raise UsageError(
                    f"'{label}' cannot be refined: the session gave {len(last)} masks for it, now {len(queries)} are "
                    "asked for",
                    remedy="Ask without refine first, with the same boxes",
                )
            queries = [q if q.mask is not None else attrs.evolve(q, mask=m) for q, m in zip(queries, last, strict=True)]
        return queries

    def _of_object(self, item: Object) -> list[Query]:
        """Queries of one object: one, or one for each of several boxes, each with the points that lie in it; points
        in none of them are a query of their own."""
        mask = None if item.mask is None else item.mask.array
        if len(item.points) + 2 > MOST_POINTS:
            raise UsageError(f"'{item.label}' has {len(item.points)} points, at most {MOST_POINTS - 2} are possible")

        def query(points: Sequence[Any], box: Box | None) -> Query:
            return self.predictor.query(
                [p.at for p in points], [int(p.positive) for p in points],
                None if box is None else [*box.low, *box.high], mask,
            )  # fmt: skip

        if len(item.boxes) < 2:
            return [query(item.points, item.boxes[0] if item.boxes else None)]
        queries = [query([p for p in item.points if _within(p.at, box)], box) for box in item.boxes]
        loose = [p for p in item.points if not any(_within(p.at, box) for box in item.boxes)]
        return queries + ([query(loose, None)] if loose else [])

    def _everything(self, context: Context, threshold: float) -> Segmentation:
        options, level = context.options, self.predictor.level(threshold)
        with context.stage("network"):
            found = everything(
                self.predictor, grid=int(options["grid"]), level=logit(threshold),
                min_quality=float(options["min_quality"]),
                min_stability=float(options["min_stability"]), overlap=float(options["overlap"]),
                tell=lambda done, total: context.progress("network", done, total, "points"),
            )  # fmt: skip
        with context.stage("restore"):
            labels = np.zeros(self.predictor.frame.shape, np.uint8 if len(found) < 256 else np.uint16)
            names, measurements = [], {"segments": float(len(found))}
            for value, one in enumerate(found, 1):  # the largest first, so that what lies on it stays visible
                labels[self.predictor.restore(one.low) > level] = value
                names.append(f"segment {value}")
                measurements |= {
                    f"segment {value}_predicted_iou": one.quality,
                    f"segment {value}_stability": one.stability,
                }
        return Segmentation(labels=labels, structures=_structures(names), measurements=measurements)


def by_label(objects: Sequence[Object]) -> dict[str, list[Object]]:
    """Objects of one label together: they become one structure."""
    grouped: dict[str, list[Object]] = {}
    for item in objects:
        grouped.setdefault(item.label, []).append(item)
    return grouped


def _within(at: tuple[float, ...], box: Box) -> bool:
    return all(low <= v <= high for v, low, high in zip(at, box.low, box.high, strict=True))


def _structures(names: Sequence[str]) -> list[Label]:
    return [Label(value=value, name=name, colour=colour_of(value)) for value, name in enumerate(names, 1)]
