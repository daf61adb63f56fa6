"""Whether a dataset on disk is whole: files, references, grids, splits, counts."""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.dataset import BoundDataset, Item, Problem
from omlab.errors import OmlabError
from omlab.progress import CancelToken, Listener, Progress, silent

if TYPE_CHECKING:
    from omlab.settings import Settings

#: Endings that download programs give to what is not finished.
UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".aria2", ".incomplete", ".filepart", ".!ut")
#: Endings of lists and notes, which lie beside cases by right.
LISTS = (".csv", ".tsv", ".txt", ".json", ".xml", ".md")
#: Problems of one kind that are listed; the rest is counted.
LISTED = 50
#: The record at the end of a zip: signature, number of the part that it is in, and 16 bytes more.
_END = struct.Struct("<4sH16x")
#: Names of files that are held to tell which of a folder no case uses; beyond, that is not told.
HELD = 2_000_000


@attrs.frozen(kw_only=True)
class Verification:
    """What was found.

    Attributes
    ----------
    dataset : as the user named it.
    root : its folder.
    cases : split -> cases.
    read : cases that were read, with their references.
    problems : what is wrong, errors first; of one kind at most :data:`LISTED`.
    totals : kind -> number of problems, those that are not listed too.
    seconds : how long it took.
    """

    dataset: str
    root: Path | None
    cases: dict[str, int]
    read: int
    problems: tuple[Problem, ...]
    totals: dict[str, int]
    seconds: float

    @property
    def whole(self) -> bool:
        """No problem is an error."""
        return not any(problem.error for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "dataset": self.dataset, "root": str(self.root) if self.root else None, "whole": self.whole,
            "cases": self.cases, "read": self.read, "problems": [attrs.asdict(p) for p in self.problems],
            "totals": self.totals, "seconds": round(self.seconds, 3),
        }  # fmt: skip


class _Collected:
    """Problems, counted by kind; only the first of each are kept."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.totals: Counter[str] = Counter()

    def add(self, problem: Problem) -> None:
        if problem.kind == "layout" and problem in self.kept:
            return  # what keeps a dataset from being listed is met at every step
        self.totals[problem.kind] += 1
        if self.totals[problem.kind] <= LISTED:
            self.kept.append(problem)

    def found(self, kind: str, where: str, what: str, *, error: bool = True) -> None:
        self.add(Problem(kind=kind, where=where, what=what, error=error))


def verify(
    bound: BoundDataset,
    settings: Settings | None = None,
    *,
    read: int | None = None,
    listener: Listener = silent,
    cancel: CancelToken | None = None,
) -> Verification:
    """Look at everything: layout, archives, files, names, groups, counts, and the cases with their references.

    Parameters
    ----------
    settings : where the files of the card are kept, to compare their digests.
    read : read only so many cases, spread evenly where their number is known; all without, none for 0. What is in two
        splits is looked for among those that are read; which classes are absent is only told of all.

    Returns
    -------
    What is wrong, as data; a dataset that cannot be listed at all is one problem more.
    """
    start = time.perf_counter()
    cancel = cancel or CancelToken()
    card = bound.dataset.card
    problems = _Collected()
    if settings is not None and not bound.root:
        _digests(bound, settings, problems)
    if bound.root is not None:
        _layout(bound.root, card.layout, problems)
        _archives(bound.root, problems)
    try:
        for problem in bound.dataset.problems(bound.files, root=bound.root):
            problems.add(problem)
    except OmlabError as error:
        problems.found("layout", str(bound.root or card.name), error.message)
    cases, done = _cases(bound, problems, read, listener, cancel)
    _counts(bound, cases, problems)
    kept = sorted(problems.kept, key=lambda problem: not problem.error)
    return Verification(
        dataset=bound.name, root=bound.root, cases=dict(cases), read=done, problems=tuple(kept),
        totals=dict(problems.totals), seconds=time.perf_counter() - start,
    )  # fmt: skip


def _digests(bound: BoundDataset, settings: Settings, problems: _Collected) -> None:
    from omlab.weights.store import verify as verify_file

    for asset in bound.dataset.card.files:
        path = bound.files.get(asset.id)
        if path is None:
            problems.found("missing", asset.filename, "is not here")
            continue
        try:
            verify_file(path, asset, writable=path.is_relative_to(settings.assets_root))
        except OmlabError as error:
            problems.found("damaged", asset.filename, error.message)
        except OSError as error:
            problems.found("missing", asset.filename, f"cannot be read: {error.strerror}")


def _layout(root: Path, patterns: tuple[str, ...], problems: _Collected) -> None:
    for pattern in patterns:
        if next(root.glob(pattern), None) is None:
            problems.found("layout", pattern, f"nothing in {root} fits it")


def _archives(root: Path, problems: _Collected) -> None:
    """Downloads that were not finished, at the top of the dataset."""
    present = sorted(path for path in root.iterdir() if path.is_file())
    names = {path.name for path in present}
    for path in present:
        if path.name.endswith(UNFINISHED) or any(path.name + ending in names for ending in UNFINISHED):
            problems.found("unfinished", path.name, "is a download that was not finished")
        elif not path.stat().st_size:
            problems.found("unfinished", path.name, "is empty")
        elif path.suffix == ".zip":
            _zip(path, names, problems)


def _zip(path: Path, names: set[str], problems: _Collected) -> None:
    parts = sorted(name for name in names if name.startswith(f"{path.stem}.z") and name[-2:].isdigit())
    wanted = _last_part(path)
    if wanted is None:
        problems.found("unfinished", path.name, "has no directory at its end: the download was cut short")
        return
    for number in range(1, wanted + 1):
        if f"{path.stem}.z{number:02d}" not in parts:
            problems.found("missing", f"{path.stem}.z{number:02d}", f"is one of the {wanted + 1} parts of {path.name}")


def _last_part(path: Path) -> int | None:
    """Number of the last part of a zip, 0 for one that is not split; ``None`` where its end is missing."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END.size - 65535))  # a comment may follow the record
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        return None
    return int(_END.unpack_from(tail, at)[1])


def _cases(
    bound: BoundDataset, problems: _Collected, read: int | None, listener: Listener, cancel: CancelToken
) -> tuple[Counter[str], int]:
    """Cases of every split, and how many were read."""
    cases: Counter[str] = Counter()
    names: dict[int, str] = {}
    groups: dict[int, str] = {}
    used: dict[str, set[str]] = {}
    seen = _Seen()
    held, done = 0, 0
    try:
        total = bound.size()
        step = 1 if not read or not total else max(1, total // read)
        for number, item in enumerate(bound.items()):
            cancel.check()
            listener(Progress(bound.name, "verify", number, total, "cases"))
            cases[item.split] += 1
            _named(item, names, groups, bound.dataset.published_splits, problems)
            lacking = False
            for path in item.files:
                if held < HELD:
                    held += 1
                    used.setdefault(str(path.parent), set()).add(path.name)
                lacking |= _present(path, item, problems)
            if lacking or (read is not None and (done >= read or number % step)):
                continue
            done += 1
            _read(item, problems, seen)
    except OmlabError as error:
        problems.found("layout", str(bound.root or bound.name), error.message)
    whole = bound.split is None and bound.part is None and held < HELD
    if whole and bound.root is not None and bound.dataset.tells_extra:
        _extra(bound.root, used, problems)
    if read is None:
        _absent(bound, seen, problems)
    return cases, done


def _named(item: Item, names: dict[int, str], groups: dict[int, str], published: bool, problems: _Collected) -> None:
    # Hashes and not texts: a third of the memory, and the odds that two names share one are below one in a billion.
    key = hash(item.name)
    before = names.setdefault(key, "")
    names[key] = item.split
    if before == item.split:
        problems.found("duplicate", item.name, f"there are two cases of this name in {item.split}")
    elif before:
        problems.found("leak", item.name, f"is in both {before} and {item.split}", error=not published)
    elif item.group:
        before = groups.setdefault(hash(item.group), item.split)
        if before != item.split:
            what = f"'{item.group}' has cases in both {before} and {item.split}"
            problems.found("leak", item.name, what, error=not published)


def _present(path: Path, item: Item, problems: _Collected) -> bool:
    """Is the file lacking? Says so."""
    try:
        if path.stat().st_size or path.is_dir():
            return False
        problems.found("damaged", str(path), f"is empty, a file of case '{item.name}'")
    except OSError:
        problems.found("missing", str(path), f"is not there, a file of case '{item.name}'")
    return True


@attrs.define
class _Seen:
    """What the cases that were read have: by split the values of structures and the names of classes; by the hash of
    what is in a case its split and name."""

    values: dict[str, set[int]] = attrs.field(factory=dict)
    classes: dict[str, set[str]] = attrs.field(factory=dict)
    contents: dict[int, tuple[str, str]] = attrs.field(factory=dict)


def _absent(bound: BoundDataset, seen: _Seen, problems: _Collected) -> None:
    """Structures and classes that no case of a split has."""
    for split, values in seen.values.items():
        for label in bound.dataset.card.labels:
            if label.value not in values:
                problems.found("absent", split, f"no case has '{label.name}'", error=False)
    for split, present in seen.classes.items():
        for name in bound.classes:
            if name not in present:
                problems.found("absent", split, f"no case is of '{name}'", error=False)


def _content(item: Item, case: Any, seen: _Seen, problems: _Collected) -> None:
    """Is the same image or scan in another split under another name? A remark: the files are as they were published,
    but ``omlab adapt`` refuses to learn from them."""
    from omlab.cases import Image, Volume
    from omlab.labelled import case_digest

    if not isinstance(case, Image | Volume) or len(seen.contents) >= HELD:
        return
    split, name = seen.contents.setdefault(hash(case_digest(case)), (item.split, item.name))
    if split != item.split and name != item.name:
        problems.found("twin", item.name, f"is the same, in {item.split}, as '{name}' in {split}", error=False)


def _read(item: Item, problems: _Collected, seen: _Seen) -> None:
    from omlab.cases import Image, Volume
    from omlab.results import Classification, Segmentation

    kind = "damaged"
    try:
        case = item.case()
        kind = "reference"
        truth = item.truth()
    except OmlabError as error:
        problems.found(kind, item.name, error.message)
        return
    except Exception as error:  # a plugin's defect must not end the other cases
        problems.found(kind, item.name, f"{type(error).__name__}: {error}; a defect of the plugin or of omlab")
        return
    _content(item, case, seen, problems)
    if isinstance(truth, Classification):
        found = seen.classes.setdefault(item.split, set())
        found.update(name for name, share in zip(truth.classes, truth.probabilities, strict=True) if share > 0.5)
    if not isinstance(truth, Segmentation):
        return
    seen.values.setdefault(item.split, set()).update(value for value, count in truth.counts().items() if count)
    if isinstance(case, Volume) and truth.geometry is not None:
        if not case.geometry.same_grid(truth.geometry):
            problems.found("grid", item.name, truth.geometry.difference(case.geometry, "the reference", "the scan"))
    elif isinstance(case, Image) and tuple(truth.labels.shape) != tuple(case.pixels.shape[:2]):
        rows, columns = case.pixels.shape[:2]
        problems.found(
            "grid", item.name,
            f"the reference has {' x '.join(map(str, truth.labels.shape))} pixels, the image {rows} x {columns}",
        )  # fmt: skip


def _extra(root: Path, used: dict[str, set[str]], problems: _Collected) -> None:
    """Files beside those of cases that no case uses. Lists, notes and what lies at the top are none of its business."""
    import os

    for folder, names in used.items():
        if Path(folder) == root:
            continue
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name[0] == "." or entry.name in names or entry.name.endswith(LISTS):
                        continue
                    if entry.is_file():
                        problems.found("extra", entry.path, "belongs to no case", error=False)
        except OSError:
            continue  # that its files are missing has been told


def _counts(bound: BoundDataset, cases: Counter[str], problems: _Collected) -> None:
    if not cases:
        problems.found("count", bound.name, "has no case")
    if bound.part is not None or not cases:
        return
    for split, wanted in _wanted(bound):
        have = cases.get(split, 0) if split != "all" else sum(cases.values())
        if have != wanted:
            problems.found("count", split, f"has {have} cases, {wanted} are published")


def _wanted(bound: BoundDataset) -> Iterator[tuple[str, int]]:
    for split, wanted in bound.dataset.published(bound.files, root=bound.root).items():
        if bound.split in (None, split):
            yield split, int(wanted)
