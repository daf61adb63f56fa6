"""Run a model on a dataset and score it: the runner over the evaluator hook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from omlab import __version__
from omlab.dataset import BoundDataset
from omlab.errors import Cancelled, OmlabError, UsageError
from omlab.evaluator import Pair
from omlab.loading import LoadedModel, options_of
from omlab.plugins import Registry
from omlab.progress import Listener, Progress, silent
from omlab.report import Report
from omlab.running import Run
from omlab.vocabulary import Kind


@attrs.frozen
class Evaluation:
    """A report, and the cases that failed and so are not in it."""

    report: Report
    failures: tuple[Run, ...]


def evaluator_for(loaded: LoadedModel, registry: Registry) -> str:
    """The evaluator that takes what the model gives. Raises :class:`omlab.errors.UsageError` if it is not one."""
    given = set(loaded.variant.outputs or loaded.card.outputs)
    fitting = [name for name, card in registry.cards(Kind.EVALUATOR).items() if given & set(card.takes)]
    if len(fitting) != 1:
        known = ", ".join(fitting or registry.cards(Kind.EVALUATOR)) or "none is installed"
        raise UsageError(
            f"{len(fitting)} evaluators fit what '{loaded.card.name}' gives", remedy=f"Name one --with: {known}"
        )
    return fitting[0]


def evaluate(
    loaded: LoadedModel,
    dataset: BoundDataset,
    evaluator: str | None = None,
    *,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    evaluator_options: Mapping[str, Any] | None = None,
    registry: Registry,
    listener: Listener = silent,
) -> Evaluation:
    """Run ``loaded`` on the cases of ``dataset`` and score the answers as they come.

    Parameters
    ----------
    evaluator : its name; the one that fits without.
    limit : only the first cases.
    options, evaluator_options : of the model, of the evaluator.

    Raises
    ------
    UsageError
        No evaluator fits, or the dataset has no case with a reference.
    """
    name = evaluator or evaluator_for(loaded, registry)
    card = registry.card(Kind.EVALUATOR, name)
    behind = registry.load(Kind.EVALUATOR, name)
    splits = dataset.dataset.card.splits
    split = dataset.split or ("test" if "test" in splits else None)
    failures: list[Run] = []
    scored = [0]

    def pairs() -> Iterator[Pair]:
        for number, item in enumerate(dataset.items(split)):
            if limit is not None and number >= limit:
                return
            listener(Progress(item.name, "network", number, None, "cases"))
            try:
                reference = item.truth()
                if reference is None:
                    continue
                prompts = item.asked() if loaded.card.prompts else None
                prediction = loaded.run(item.case(), prompts=prompts, options=options).result
            except Cancelled:
                raise
            except OmlabError as error:
                failures.append(
                    Run(item.name, "failed", code=error.code, cause=error.message, remedy=error.remedy or "")
                )
                continue
            scored[0] += 1
            yield Pair(name=item.name, prediction=prediction, reference=reference)

    report = behind.score(pairs(), options_of(card, evaluator_options or {}))
    if not scored[0] and not failures:
        raise UsageError(f"dataset '{dataset.name}' has no case with a reference in split '{split or 'all'}'")
    environment = {
        **report.environment,
        "omlab": __version__,
        "model": loaded.card.name,
        "variant": loaded.variant.name,
        "model_version": loaded.card.version,
        "weights_sha256": loaded.weights_sha256,
        "dataset": dataset.name,
        "split": split or "all",
        "failed": len(failures),
        "engines": loaded.engines_used(),
    }
    return Evaluation(attrs.evolve(report, environment=environment), tuple(failures))
