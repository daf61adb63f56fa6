"""Labelled cases of a dataset, parted into what a classifier learns from, is chosen by and is measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from omlab.cases import Case
from omlab.dataset import BoundDataset, Item
from omlab.errors import InputError
from omlab.progress import Listener, Progress, silent
from omlab.results import Classification
from omlab.shots import draw
from omlab.weights.store import sha256_of

#: Share of the training cases that is held back where a dataset has no validation split.
HELD_BACK = 0.2


@attrs.frozen(eq=False, kw_only=True)
class Split:
    """Cases of one split, not yet read.

    Attributes
    ----------
    targets : [cases, classes] float32: 1 where a case is of a class.
    """

    items: tuple[Item, ...]
    targets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: Sequence[int]) -> Split:
        """Some of the cases, in the order that is given."""
        return Split(items=tuple(self.items[i] for i in indices), targets=self.targets[list(indices)])


@attrs.frozen(eq=False, kw_only=True)
class Splits:
    """A dataset made ready for a classifier.

    Attributes
    ----------
    exclusive : every case is of exactly one class.
    remarks : what the reader of a report should know, one line each.
    """

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    exclusive: bool
    remarks: tuple[str, ...] = ()

    def present(self) -> NDArray[np.bool_]:
        """[classes]: has training cases."""
        return self.train.targets.any(axis=0)  # type: ignore[no-any-return]

    def all(self) -> dict[str, Split]:
        """By name, those that have cases."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if len(split)}


def gather(dataset: BoundDataset, *, shots: int = 0, seed: int = 0, listener: Listener = silent) -> Splits:
    """The labelled cases of a dataset by split; of the training cases ``shots`` a class, or all for 0.

    A dataset without a ``val`` split gives a fifth of each class of its training cases, drawn by ``seed`` and never
    part of a patient; nothing is held back of drawn shots, or where it would leave a class without a training case.

    Raises
    ------
    InputError
        A name or a patient is in two splits; references are missing or of other classes; fewer than two classes have
        training cases.
    """
    classes = dataset.classes
    parted = bool(dataset.dataset.card.splits)
    known = dataset.dataset.card.splits if parted else ("train",)
    found: dict[str, tuple[list[Item], list[NDArray[np.float32]]]] = {
        name: ([], []) for name in ("train", "val", "test")
    }
    exclusive = True
    unlabelled = 0
    for name in found:
        if name not in known:
            continue
        for number, item in enumerate(dataset.items(name if parted else None)):
            if number % 1000 == 0:
                listener(Progress(f"{dataset.name} {name}", "read", number, None, "labels"))
            if item.split not in ((name,) if parted else (name, "all")):
                continue
            truth = item.truth()
            if not isinstance(truth, Classification):
                unlabelled += 1
                continue
            if set(truth.classes) != set(classes):
                raise InputError(f"{item.name}: its reference has other classes than dataset '{dataset.name}'")
            row = np.asarray(truth.probabilities, np.float32)[[truth.classes.index(c) for c in classes]]
            exclusive &= truth.exclusive
            found[name][0].append(item)
            found[name][1].append((row > 0.5).astype(np.float32))
    parts = {
        name: Split(items=tuple(items), targets=np.array(rows, np.float32).reshape(len(rows), len(classes)))
        for name, (items, rows) in found.items()
    }
    remarks = [f"{unlabelled} cases have no label and were left out"] if unlabelled else []
    _refuse_leaks(parts)
    train, val = parts["train"], parts["val"]
    if not len(train):
        raise InputError(
            f"dataset '{dataset.name}' has no training case with a class",
            remedy="A classifier learns from a split called train, with a class for each case",
        )
    if shots:
        groups = [item.group for item in train.items]
        chosen, more = draw(train.targets, shots, seed, groups=groups if any(groups) else (), classes=classes)
        train = train.take(chosen)
        remarks += more
    present = train.targets.any(axis=0)
    if present.sum() < 2 and exclusive:
        raise InputError(
            f"dataset '{dataset.name}' has training cases of {int(present.sum())} class of {len(classes)}; two are "
            "needed",
            remedy="A classifier needs something to tell apart",
        )
    absent = [name for name, there in zip(classes, present, strict=True) if not there]
    if absent:
        remarks.append(f"no training case is of {', '.join(absent)}: a class that cannot be learnt is never predicted")
    if not len(val) and shots:
        remarks.append("the dataset has no val split, and of drawn shots none are held back")
    elif not len(val):
        train, val, remark = _hold_back(train, seed)
        remarks.append(remark)
    for name, split in (("validation", val), ("test", parts["test"])):
        lacking = [c for c, there in zip(classes, split.targets.any(axis=0), strict=True) if not there]
        if len(split) and lacking:
            remarks.append(f"no {name} case is of {', '.join(lacking)}: its AUC is left out of the mean")
    return Splits(
        train=train, val=val, test=parts["test"], classes=classes, exclusive=exclusive, remarks=tuple(remarks)
    )


def _refuse_leaks(parts: Mapping[str, Split]) -> None:
    """Raise :class:`InputError` where a name or a patient is in two splits."""
    where: dict[tuple[str, str], str] = {}
    for name, split in parts.items():
        for item in split.items:
            keys = [("case", item.name)] + ([("patient", item.group)] if item.group else [])
            for key in keys:
                before = where.setdefault(key, name)
                if before != name:
                    raise InputError(
                        f"{key[0]} '{key[1]}' is in the splits {before} and {name}",
                        remedy="A case that was learnt from proves nothing: take it out of one of them",
                    )


def _hold_back(train: Split, seed: int) -> tuple[Split, Split, str]:
    """Training cases with a fifth of each class held back, whole patients; and what was done."""
    groups = [item.group or f"case {number}" for number, item in enumerate(train.items)]
    generator = np.random.default_rng([seed, 1])
    held: set[str] = set()
    for number in range(train.targets.shape[1]):
        own = list(dict.fromkeys(groups[i] for i in np.flatnonzero(train.targets[:, number])))
        missing = round(HELD_BACK * len(own)) - len(held.intersection(own))
        free = [group for group in own if group not in held]
        held.update(free[i] for i in generator.permutation(len(free))[: max(0, missing)].tolist())
    inside = [i for i, group in enumerate(groups) if group in held]
    kept = [i for i, group in enumerate(groups) if group not in held]
    if not inside or (train.targets[kept].any(axis=0) != train.targets.any(axis=0)).any():
        return train, train.take([]), "there are too few training cases to hold some back for validation"
    text = f"the dataset has no val split: {len(inside)} of {len(train)} training cases were held back (seed {seed})"
    return train.take(kept), train.take(inside), text


def without_duplicates(
    splits: Splits, digests: Mapping[str, Sequence[str]], policy: str
) -> tuple[Splits, dict[str, list[int]]]:
    """Look for cases of the same content in two splits; the digests go with the cases of each split.

    Returns the splits and, by split, the indices of the cases that stay.

    Parameters
    ----------
    policy : ``"refuse"``, or ``"drop"``: what is in a later split is dropped from the earlier ones (``train`` before
        ``val`` before ``test``), so that nothing is measured on what was learnt.

    Raises
    ------
    InputError
        There are some and the policy is to refuse.
    """
    order = [name for name in ("train", "val", "test") if name in digests]
    keep: dict[str, list[int]] = {}
    remarks = []
    for place, name in enumerate(order):
        later = {digest: other for other in order[place + 1 :] for digest in digests[other] if digest}
        double = [i for i, digest in enumerate(digests[name]) if digest in later]
        if double and policy == "refuse":
            first = double[0]
            other = later[digests[name][first]]
            twin = splits.all()[other].items[list(digests[other]).index(digests[name][first])]
            raise InputError(
                f"{len(double)} {name} cases are also in the split {other} under another name, first "
                f"'{splits.all()[name].items[first].name}', which is '{twin.name}'",
                remedy="--duplicates drop leaves them out of what is learnt from",
            )
        if double:
            remarks.append(f"{len(double)} {name} cases are also in a later split and were dropped")
        gone = set(double)
        keep[name] = [i for i in range(len(digests[name])) if i not in gone]
    changed = {name: split.take(keep[name]) for name, split in splits.all().items() if name in keep}
    return attrs.evolve(splits, **changed, remarks=(*splits.remarks, *remarks)), keep


def case_digest(case: Case) -> str:
    """SHA-256 of all that a model can see of a case, whatever its name; of its files where the case only reads from
    them; empty where neither can be had."""
    digest = hashlib.sha256(str(case.kind).encode())
    seen = [field.name for field in attrs.fields(type(case)) if field.name not in ("name", "source")]
    if all(_feed(digest, name, getattr(case, name)) for name in seen):
        return digest.hexdigest()
    files = [path for path in case.source.files or (case.source.path,) if path is not None and path.is_file()]
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest() if files else ""


def _feed(digest: Any, name: str, value: Any) -> bool:
    digest.update(f"{name}:".encode())
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif value is None or isinstance(value, str | int | float | bool | np.generic):
        digest.update(repr(value).encode())
    elif isinstance(value, tuple | list):
        return all(_feed(digest, str(i), item) for i, item in enumerate(value))
    elif isinstance(value, Mapping):
        return all(_feed(digest, str(key), item) for key, item in value.items())
    elif attrs.has(type(value)):
        return all(_feed(digest, f.name, getattr(value, f.name)) for f in attrs.fields(type(value)))
    else:
        return False
    return True


def figures(probabilities: NDArray[Any], targets: NDArray[Any], *, exclusive: bool = True) -> dict[str, float]:
    """``auc`` (macro one-vs-rest over the classes that some cases have and some have not; left out where there is
    none) and ``accuracy`` (of the most probable class; of all classes at 0.5 where they do not exclude each other)."""
    if exclusive:
        accuracy = float((probabilities.argmax(axis=1) == targets.argmax(axis=1)).mean())
    else:
        accuracy = float(((probabilities > 0.5) == (targets > 0.5)).mean())
    areas = [area(probabilities[:, c], targets[:, c] > 0.5) for c in range(targets.shape[1])]
    defined = [a for a in areas if a is not None]
    return {"accuracy": accuracy} | ({"auc": float(np.mean(defined))} if defined else {})


def area(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, equal scores counting one half; ``None`` where one side has no case."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))
