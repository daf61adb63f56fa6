"""What is in a dataset: cases of splits and classes, and sizes, spacings and intensities of a bounded sample."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from omlab.cases import Case, Image, Sequence, Text, Video, Volume
from omlab.dataset import BoundDataset, Item
from omlab.errors import OmlabError
from omlab.progress import CancelToken, Listener, Progress, silent
from omlab.results import Classification, Result, Segmentation
from omlab.vocabulary import Task

#: Cases that are read without a wish of the user.
SAMPLE = 24
#: Cases beyond which not each is made to be counted, where the dataset knows their number.
MANY = 200_000


@attrs.frozen(kw_only=True)
class Read:
    """A case of the sample."""

    item: Item
    case: Case
    truth: Result | None


@attrs.frozen(kw_only=True)
class Statistics:
    """What was found.

    Attributes
    ----------
    splits, groups : split -> cases, and patients or studies where they are known.
    classes : split -> class -> cases; of label maps those of the sample.
    none : split -> cases of a multi-label set that are of no class.
    unlabelled : cases without a reference.
    sampled : cases that were read; ``failed`` those that could not be, with the reason.
    measured : figure -> {"min", "median", "max"} over the sample; units in the names.
    tables : further tables of the dataset itself.
    complete : every case was counted.
    """

    splits: dict[str, int]
    groups: dict[str, int]
    classes: dict[str, dict[str, int]]
    none: dict[str, int]
    unlabelled: int
    sampled: int
    failed: dict[str, str]
    measured: dict[str, dict[str, float]]
    tables: Mapping[str, Mapping[str, Any]]
    complete: bool

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return attrs.asdict(self)


def gather(
    bound: BoundDataset,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    listener: Listener = silent,
    cancel: CancelToken | None = None,
) -> tuple[Statistics, list[Read]]:
    """Count all cases and read ``sample`` of them, drawn evenly with ``seed``.

    Counting makes every case without reading it; of a set of millions that knows its number only the sample is made.

    Returns
    -------
    The statistics, and the cases that were read, in their order.
    """
    cancel = cancel or CancelToken()
    total = bound.size()
    many = total is not None and total > MANY
    counted = _Counted(classify=Task.CLASSIFICATION in bound.dataset.card.task)
    items = _strided(bound, total or 0, sample) if many else bound.items()
    drawn: list[tuple[int, Item]] = []
    generator = random.Random(seed)
    for number, item in enumerate(items):
        cancel.check()
        listener(Progress(bound.name, "count", number, None if many else total, "cases"))
        if not many:
            counted.add(item)
        # A reservoir: every case has the same chance, and only the sample is held.
        if len(drawn) < sample:
            drawn.append((number, item))
        elif (place := generator.randrange(number + 1)) < sample:
            drawn[place] = (number, item)
    read, failed = _read([item for _, item in sorted(drawn, key=lambda pair: pair[0])], bound, listener, cancel)
    if many and total is not None:
        counted.splits[bound.split or "all"] = total
    for one in read:
        counted.structures(one)
    statistics = Statistics(
        splits=dict(counted.splits), groups={split: len(found) for split, found in counted.groups.items()},
        classes={split: dict(found) for split, found in counted.classes.items()}, none=dict(counted.none),
        unlabelled=counted.unlabelled, sampled=len(read), failed=failed, measured=_measure(read),
        tables=bound.dataset.facts(bound.files, root=bound.root), complete=not many,
    )  # fmt: skip
    return statistics, read


class _Counted:
    def __init__(self, *, classify: bool) -> None:
        self._classify = classify
        self.splits: Counter[str] = Counter()
        self.groups: dict[str, set[str]] = {}
        self.classes: dict[str, Counter[str]] = {}
        self.none: Counter[str] = Counter()
        self.unlabelled = 0

    def add(self, item: Item) -> None:
        self.splits[item.split] += 1
        if item.group:
            self.groups.setdefault(item.split, set()).add(item.group)
        if item.reference is None:
            self.unlabelled += 1
            return
        if not self._classify:
            return
        try:
            truth = item.truth()
        except OmlabError:
            return  # told by omlab dataset verify
        if isinstance(truth, Classification):
            found = [truth.classes[i] for i in np.flatnonzero(truth.probabilities >= 0.5).tolist()]
            self.classes.setdefault(item.split, Counter()).update(found)
            if not found:
                self.none[item.split] += 1

    def structures(self, one: Read) -> None:
        if isinstance(one.truth, Segmentation):
            names = {label.value: label.name for label in one.truth.structures}
            found = {names[value] for value, count in one.truth.counts().items() if count}
            self.classes.setdefault(one.item.split, Counter()).update(found)


def _strided(bound: BoundDataset, total: int, sample: int) -> Iterator[Item]:
    return bound.dataset.shard(bound.files, 0, max(1, total // max(1, sample)), split=bound.split, root=bound.root)


def _read(
    items: list[Item], bound: BoundDataset, listener: Listener, cancel: CancelToken
) -> tuple[list[Read], dict[str, str]]:
    read: list[Read] = []
    failed: dict[str, str] = {}
    for number, item in enumerate(items):
        cancel.check()
        listener(Progress(bound.name, "read", number, len(items), "cases"))
        try:
            read.append(Read(item=item, case=item.case(), truth=item.truth()))
        except OmlabError as error:
            failed[item.name] = error.message
    return read, failed


def _measure(read: Iterable[Read]) -> dict[str, dict[str, float]]:
    figures: dict[str, list[float]] = {}
    for one in read:
        for name, value in _figures(one.case):
            figures.setdefault(name, []).append(value)
    return {
        name: {"min": float(np.min(v)), "median": float(np.median(v)), "max": float(np.max(v))}
        for name, v in figures.items()
    }


def _figures(case: Case) -> Iterator[tuple[str, float]]:
    values = None
    if isinstance(case, Image):
        yield "rows", case.pixels.shape[0]
        yield "columns", case.pixels.shape[1]
        if case.spacing_mm:
            yield "row spacing_mm", case.spacing_mm[0]
            yield "column spacing_mm", case.spacing_mm[1]
        values = case.pixels
    elif isinstance(case, Volume):
        for axis, count, spacing in zip("ijk", case.voxels.shape, case.geometry.spacing_mm, strict=True):
            yield f"voxels along {axis}", count
            yield f"spacing_mm along {axis}", spacing
        values = case.voxels
    elif isinstance(case, Video):
        yield "frames", case.frame_count
        yield "frames a second", case.rate
        yield "rows", case.size[0]
        yield "columns", case.size[1]
    elif isinstance(case, Sequence):
        yield "residues", len(case.residues)
    elif isinstance(case, Text):
        yield "characters", sum(len(message.content) for message in case.messages)
    if values is not None:
        # Every n-th value along each axis: some hundred thousand tell as much as all.
        stride = max(1, round((values.size / 300_000) ** (1 / values.ndim)))
        some = values[(slice(None, None, stride),) * 2 + (slice(None, None, stride if values.ndim == 3 and
                      isinstance(case, Volume) else 1),) * (values.ndim - 2)]  # fmt: skip
        low, middle, high = np.nanpercentile(some.astype(np.float32), [0.5, 50, 99.5])
        yield "intensity, 0.5 percentile", float(low)
        yield "intensity, median", float(middle)
        yield "intensity, 99.5 percentile", float(high)
