"""``omlab score elo BATTLES...``: a file of judged battles for every dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omlab.errors import InputError, UsageError
from omlab.evaluator import Evaluator
from omlab.report import Report, Value
from omlab_elo import battles as reading
from omlab_elo.leaderboard import Board, draw
from omlab_elo.ranks import ranks_by_mean, ranks_by_order, read_triage
from omlab_elo.rating import Ratings, rate

#: Dataset whose ratings order the rows of the paper's Table 2, which decides its ranks among equals.
FIRST = "MedQA-USMLE"
TRIAGE = "triage F1"


class EloEvaluator(Evaluator):
    """Ratings of every dataset, and ranks over all of them."""

    def score_files(self, files: Sequence[Path], options: Mapping[str, Any]) -> Report:
        """Rate the battles of each file.

        Raises
        ------
        omlab.errors.InputError
            A file is no file of battles, or two files are of one dataset.
        omlab.errors.UsageError
            There is no file, or the number of rounds or K makes no sense.
        """
        if not files:
            raise UsageError("elo takes files of battles, found none", remedy="omlab score elo BATTLES.jsonl ...")
        if options["rounds"] < 0 or not options["k"] > 0:
            raise UsageError("elo takes rounds of 0 or more and a K above 0")
        every = [reading.read(path) for path in files]
        names = [battles.name for battles in every]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"two files are of the dataset '{twice}'", remedy="Join them, or name them apart")
        rated = [rate(b, rounds=options["rounds"], seed=options["seed"], k=options["k"]) for b in every]
        f1 = {m: s["f1"] for m, s in read_triage(Path(options["triage"])).items()} if options["triage"] else {}
        board = _board(rated, f1, options["ties"])
        machine = [_machine(ratings) for ratings in rated]
        many = {
            "datasets": dict(zip(names, machine, strict=True)),
            "ranks": dict(zip(board.models, board.average, strict=True)),
            **({"triage_f1": f1} if f1 else {}),
        }
        return Report(
            evaluator=self.card.name,
            title=self.card.title,
            summary=_summary(rated, board, f1),
            cases=_rows(rated),
            options={**options, "interval": "2.5 % and 97.5 % of the bootstrap ratings"},
            environment={"plugin": self.card.plugin, "version": self.card.version, "numpy": np.__version__},
            warnings=[text for ratings in rated for text in _warnings(ratings)],
            table=_table(board) if len(board.columns) > 1 else _alone(rated[0]),
            machine=machine[0] if len(machine) == 1 and not f1 else many,
            illustration=lambda title: draw(board, rated, title),
        )  # fmt: skip


def _machine(ratings: Ratings) -> dict[str, Any]:
    known = {
        name: ratings.of(values) if not np.isnan(values).all() else {}
        for name, values in (("median", ratings.median), ("low", ratings.low), ("high", ratings.high))
    }
    return {
        "online": ratings.of(ratings.online), **known, "battles": len(ratings.battles),
        "unparsed": len(ratings.battles.unparsed),
    }  # fmt: skip


def _board(rated: Sequence[Ratings], f1: Mapping[str, float], ties: str) -> Board:
    """Models in the order of the ratings in the paper's first dataset, else in the first of all, best first, with the
    rank in each column and their mean: so the paper's ties fall as they do there, in whatever order its files come."""
    first = next((ratings for ratings in rated if ratings.battles.name == FIRST), rated[0])
    best = first.of(np.where(np.isnan(first.median), first.online, first.median))
    others = {model: None for ratings in rated for model in ratings.battles.models if model not in best}
    models = [*sorted(best, key=lambda model: -best[model]), *others]
    columns = {r.battles.name: dict(zip(r.battles.models, map(float, r.published), strict=True)) for r in rated}
    if f1:
        columns[TRIAGE] = dict(f1)
    rank = ranks_by_order if ties == "order" else ranks_by_mean
    ranks: dict[str, dict[str, float]] = {}
    for name, column in columns.items():
        present = [model for model in models if model in column]
        ranks[name] = dict(zip(present, rank([column[m] for m in present]).tolist(), strict=True))
    average = [float(np.mean([ranks[name][m] for name in columns if m in ranks[name]] or [np.nan])) for m in models]
    return Board(tuple(models), columns, ranks, tuple(average))


def _table(board: Board) -> list[list[str]]:
    """The leaderboard, best mean rank first: a column a dataset, whole ratings with the rank in it."""
    rows = [["model", "average rank", *board.columns]]
    for i in sorted(range(len(board.models)), key=lambda i: board.average[i]):
        model = board.models[i]
        cells = []
        for name, column in board.columns.items():
            value = column.get(model)
            shown = "" if value is None else f"{value:.0f}" if name != TRIAGE else f"{value:.4f}"
            cells.append(f"{shown} ({board.ranks[name][model]:g})" if shown else "")
        rows.append([model, f"{board.average[i]:.4g}", *cells])
    return rows


def _alone(ratings: Ratings) -> list[list[str]]:
    """The leaderboard of one dataset, best first."""
    rows = [["model", "rating", "95 % interval", "in order", "battles"]]
    best = np.where(np.isnan(ratings.median), ratings.online, ratings.median)
    for i in np.argsort(-best, kind="stable"):
        count = int(((ratings.battles.first == i) | (ratings.battles.second == i)).sum())
        bounds = "" if np.isnan(ratings.low[i]) else f"{ratings.low[i]:.0f} to {ratings.high[i]:.0f}"
        rows.append([ratings.battles.models[i], f"{best[i]:.1f}", bounds, f"{ratings.online[i]:.1f}", str(count)])
    return rows


def _summary(rated: Sequence[Ratings], board: Board, f1: Mapping[str, float]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    order = sorted(range(len(board.models)), key=lambda i: board.average[i])
    for i in order:
        model = board.models[i]
        if len(board.columns) > 1:
            found[f"{model}/average rank"] = Value(value=board.average[i], n=len(board.columns))
        for ratings in rated:
            if model not in ratings.battles.models:
                continue
            at = ratings.battles.models.index(model)
            count = int(((ratings.battles.first == at) | (ratings.battles.second == at)).sum())
            median = float(ratings.median[at])
            found[f"{model}/{ratings.battles.name}"] = (
                Value(value=float(ratings.online[at]), n=count)
                if np.isnan(median)
                else Value(value=median, low=float(ratings.low[at]), high=float(ratings.high[at]), n=count)
            )
        if model in f1:
            found[f"{model}/{TRIAGE}"] = Value(value=f1[model])
    return found


def _rows(rated: Sequence[Ratings]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": ratings.battles.name, "model": model, "online": float(ratings.online[i]),
            "median": float(ratings.median[i]), "low": float(ratings.low[i]), "high": float(ratings.high[i]),
            "rounded": int(ratings.published[i]),
        }
        for ratings in rated
        for i, model in enumerate(ratings.battles.models)
    ]  # fmt: skip


def _warnings(ratings: Ratings) -> list[str]:
    name, told = ratings.battles.name, []
    unparsed, differing = ratings.battles.unparsed, ratings.battles.differing
    if unparsed:
        listed = "; ".join(f"line {number} '{text}'" for number, text in unparsed[: reading.LISTED])
        told.append(f"{name}: {len(unparsed)} verdicts hold no scores and count as ties: {listed}{_more(unparsed)}")
    if differing:
        listed = ", ".join(f"line {number}" for number in differing[: reading.LISTED])
        told.append(
            f"{name}: {len(differing)} lines name another winner than their verdict gives, which counts: {listed}"
            f"{_more(differing)}"
        )
    return told


def _more(listed: Sequence[Any]) -> str:
    return f" and {len(listed) - reading.LISTED} more" if len(listed) > reading.LISTED else ""
