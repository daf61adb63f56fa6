"""``omlab score medfmc --dataset chest --labels FILE --submission FILE``, or folders of the whole challenge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from omlab import charts
from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator
from omlab.report import Report, Value
from omlab_medfmc.metrics import Scores, multi_label, repeated, single_label
from omlab_medfmc.sets import SETS, Set, join, read_labels, read_submission

_SUBMISSION = re.compile(r"(chest|colon|endo)_(1|5|10)-shot_submission\.csv(\.gz)?\Z")


class MedFmc(Evaluator):
    """Scores of submissions, and the challenge's mean of all of them."""

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """One submission, or a folder of them.

        Raises
        ------
        omlab.errors.InputError
            A file is damaged, or images differ between submission and labels.
        omlab.errors.UsageError
            Options are missing.
        """
        if files or not options["labels"] or not options["submission"]:
            raise UsageError(
                "medfmc takes its files as options",
                remedy="omlab score medfmc --dataset chest --labels FILE --submission FILE",
            )
        labels, submission = Path(options["labels"]), Path(options["submission"])
        whole = submission.is_dir()
        if not whole and not options["dataset"]:
            raise UsageError("which set is the submission of?", remedy=f"Say --dataset {'|'.join(SETS)}")
        jobs = _challenge(submission, labels) if whole else [("", SETS[options["dataset"]], submission, labels)]
        summary: dict[str, Value] = {}
        cases: list[dict[str, Any]] = []
        warnings: list[str] = []
        for name, which, scores_path, labels_path in jobs:
            scores, truth = join(read_submission(scores_path, which), read_labels(labels_path, which), scores_path.name)
            found = multi_label(scores, truth) if which.multi_label else single_label(scores, truth[:, 0])
            row = {"dataset": which.name, **_row(found, which, options["absent"])}
            cases.append({"submission": name or scores_path.name, **row})
            prefix = f"{name}/" if name else ""
            for key in ("mAP", "AUC", "accuracy"):
                if key in row:
                    why = "" if row[key] is not None else "no class before it has an AUC"
                    summary[f"{prefix}{key}"] = Value(value=row[key], n=found.images, unit="%", undefined=why)
            warnings += _warnings(name or scores_path.name, found, which, scores, options["absent"])
        aggregate = None
        if whole:
            values = [row[key] for row in cases for key in ("mAP", "AUC", "accuracy") if row.get(key) is not None]
            aggregate = float(np.mean(values))
            summary = {"challenge": Value(value=aggregate, n=len(values), unit="%")} | summary
        return Report(
            evaluator=self.card.name, title=self.card.title, summary=summary, cases=cases, warnings=warnings,
            options=dict(options),
            environment={
                "plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
            machine={"challenge": aggregate, "submissions": cases} if whole else row,
            illustration=lambda title: _draw(title, cases),
        )  # fmt: skip


def _draw(title: str, cases: Sequence[Mapping[str, Any]]) -> Any:
    """Of one submission every class, of several their figures."""
    if len(cases) == 1:
        row = cases[0]
        panels = [
            (name, row["classes"], row[key]) for name, key in (("AUC", "class_auc"), ("AP", "class_ap")) if key in row
        ]
    else:
        panels = []
        for key in ("AUC", "mAP", "accuracy"):
            rows = [row for row in cases if row.get(key) is not None]
            if rows:
                panels.append((key, [row["submission"] for row in rows], [row[key] for row in rows]))
    drawn = [
        charts.figures(f"{name}, in per cent", list(map(charts.Figure, names, values)), low=0.0, high=100.0)
        for name, names, values in panels
    ]
    return charts.sheet(title, drawn, cases[0]["submission"] if len(cases) == 1 else f"{len(cases)} submissions")


def _row(found: Scores, which: Set, absent: str) -> dict[str, Any]:
    row: dict[str, Any] = {"images": found.images}
    if found.class_ap is not None:
        row |= {"mAP": found.mean_ap(absent)}
    if found.accuracy is not None:
        row["accuracy"] = found.accuracy
    upstream = absent == "upstream"
    row |= {
        "AUC": found.auc(absent),
        "classes": list(which.classes),
        "class_auc": list(repeated(found.class_auc) if upstream else found.class_auc),
        "positives": list(found.positives),
        "undefined": [which.classes[i] for i in found.undefined],
    }
    if found.class_ap is not None:
        row["class_ap"] = list(found.class_ap)
    return row | found.pooled


def _warnings(name: str, found: Scores, which: Set, scores: Any, absent: str) -> Iterator[str]:
    if found.undefined:
        names = ", ".join(which.classes[i] for i in found.undefined)
        rule = "takes the AUC of the class before it" if absent == "upstream" else "is left out of the means"
        left = found.auc("left-out")
        without = f"; without it the AUC is {left:.4f}" if absent == "upstream" and left is not None else ""
        yield f"{name}: all images, or none, are {names}, which {rule}{without}"
    if not which.multi_label and np.abs(scores.sum(axis=1) - 1).max() > 1e-3:
        yield f"{name}: scores of an image do not sum to 1; they are taken as they are"
    constant = [which.classes[c] for c in range(scores.shape[1]) if scores[:, c].min() == scores[:, c].max()]
    if constant and which.multi_label:
        yield f"{name}: all scores of {', '.join(constant)} are equal, so its AP depends on the order of the file"


def _challenge(folder: Path, labels: Path) -> Iterator[tuple[str, Set, Path, Path]]:
    """Submissions below a folder with the label file of each; all experiments that there are."""
    if not labels.is_dir():
        raise UsageError(f"{labels} is no folder", remedy="Name the folder with SET_val.txt of every set")
    found = sorted(path for path in folder.rglob("*") if _SUBMISSION.match(path.name))
    if not found:
        raise InputError(f"{folder}: holds no SET_N-shot_submission.csv")
    for path in found:
        matched = _SUBMISSION.match(path.name)
        assert matched is not None
        which = matched[1]
        candidates = [labels / f"{which}_val.txt", labels / f"{which}_val.txt.gz"]
        truth = next((candidate for candidate in candidates if candidate.is_file()), None)
        if truth is None:
            raise InputError(f"{labels}: has no {which}_val.txt")
        experiment = path.parent.name if re.fullmatch(r"exp\d+", path.parent.name) else ""
        yield "/".join(part for part in (experiment, f"{which} {matched[2]}-shot") if part), SETS[which], path, truth
