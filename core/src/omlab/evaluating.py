"""Run a model on a dataset and score it: the runner over the evaluator hook.

With a folder, the answer to every case is kept there as soon as it is known. An evaluation that was stopped, by Ctrl-C
or by a crash, then goes on where it was: what is whole is read and not run again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab import __version__
from omlab.cards import EvaluatorCard
from omlab.dataset import BoundDataset, Item
from omlab.errors import Cancelled, InputError, OmlabError, UsageError
from omlab.evaluator import Evaluator, Pair
from omlab.files import case_stem, stamp, write_text
from omlab.loading import LoadedModel, options_of
from omlab.plugins import Registry
from omlab.progress import CancelToken, Listener, Progress, silent
from omlab.report import Report, jsonable
from omlab.running import Run, prepare_folder
from omlab.vocabulary import Kind
from omlab.weights.store import sha256_of

if TYPE_CHECKING:
    from omlab.cases import Case
    from omlab.results import Result

#: What an evaluation with a folder leaves there beside its report: what was run, and the answers.
RECORD, ANSWERS = "evaluation.json", "answers"


@attrs.frozen
class Evaluation:
    """A report, and the cases that failed and so are not in it.

    Attributes
    ----------
    resumed : cases whose answer was there already.
    """

    report: Report
    failures: tuple[Run, ...]
    resumed: int = 0


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
    folder: str | Path | None = None,
    resume: bool = False,
    registry: Registry,
    listener: Listener = silent,
    cancel: CancelToken | None = None,
) -> Evaluation:
    """Run ``loaded`` on the cases of ``dataset`` and score the answers as they come.

    Parameters
    ----------
    evaluator : its name; the one that fits without.
    limit : only the first cases.
    options, evaluator_options : of the model, of the evaluator.
    folder : where the answers are kept; nothing is kept without.
    resume : take the answers that ``folder`` holds already, if they are whole and of the same files.

    Raises
    ------
    UsageError
        No evaluator fits, or not the one that is named; the dataset has no case with a reference; ``folder`` holds an
        evaluation of something else, or one that ``resume`` was not given for.
    InputError
        The evaluator has no report without a case, and all failed.
    """
    name = evaluator or evaluator_for(loaded, registry)
    card = registry.card(Kind.EVALUATOR, name)
    behind = registry.load(Kind.EVALUATOR, name)
    _check_fit(loaded, card, behind)
    splits = dataset.dataset.card.splits
    split = dataset.split or ("test" if "test" in splits else None)
    scoring = options_of(card, evaluator_options or {})
    cases = _Cases(loaded, dataset, split, limit, dict(options or {}), listener, cancel or CancelToken())
    if folder is not None:
        cases.keep_in(Path(folder), resume)
    elif resume:
        raise UsageError("there is nothing to go on from without a folder", remedy="Name it with -o FOLDER")
    try:
        report = behind.score(cases.pairs(), scoring)
    except InputError as error:
        if cases.scored or not cases.failures:
            raise
        # An evaluator that is left without a single case says so, which helps less than why there is none.
        first = cases.failures[0]
        raise InputError(
            f"all {len(cases.failures)} cases failed, first {first.name}: {first.cause}", remedy=error.remedy
        ) from None
    if not cases.scored and not cases.failures:
        others = ", ".join(s for s in splits if s != split)
        raise UsageError(
            f"dataset '{dataset.name}' has no case with a reference in split '{split or 'all'}'",
            remedy=f"Choose another with --split: {others}" if others else None,
        )
    environment = {
        "model": loaded.card.name,
        "variant": loaded.variant.name,
        "model_version": loaded.card.version,
        "weights_sha256": loaded.weights_sha256,
        "dataset": dataset.name,
        "dataset_version": dataset.dataset.card.version,
        "split": split or "all",
        "cases_sha256": cases.digest.hexdigest(),
        "failed": len(cases.failures),
        "engines": cases.engines(),
    }
    return Evaluation(traced(report, environment), tuple(cases.failures), cases.resumed)


def traced(report: Report, more: Mapping[str, Any]) -> Report:
    """The report with all that is needed to do it again: what it says itself, versions, and ``more``."""
    versions = {"omlab": __version__, "python": platform.python_version()}
    return attrs.evolve(report, environment={**report.environment, **versions, **more})


def digests(card: EvaluatorCard, paths: Iterable[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """``files``: path -> SHA-256 of every file that was named, in folders and by options too."""
    named = [option.name.replace("-", "_") for option in card.options if option.type == "path"]
    found: dict[str, str] = {}
    for path in [*paths, *(Path(options[name]) for name in named if options.get(name))]:
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        for file in inside if path.is_dir() else [path]:
            found[str(file)] = sha256_of(file)
    return {"files": found}


def _check_fit(loaded: LoadedModel, card: EvaluatorCard, behind: Evaluator) -> None:
    """Raise :class:`omlab.errors.UsageError` where an evaluator cannot take what the model gives."""
    if type(behind).score is Evaluator.score:
        raise UsageError(f"evaluator '{card.name}' scores files alone", remedy=f"omlab score {card.name} --help")
    given = set(loaded.variant.outputs or loaded.card.outputs)
    if card.takes and not given & set(card.takes):
        raise UsageError(
            f"evaluator '{card.name}' takes {' or '.join(card.takes)}; '{loaded.card.name}' ({loaded.variant.name}) "
            f"gives {', '.join(sorted(given))}",
            remedy="omlab list evaluators shows others; --variant picks another variant",
        )


class _Cases:
    """The cases of an evaluation, run or taken from the folder, with what came of them."""

    def __init__(
        self, loaded: LoadedModel, dataset: BoundDataset, split: str | None, limit: int | None,
        options: dict[str, Any], listener: Listener, cancel: CancelToken,
    ) -> None:  # fmt: skip
        self._loaded, self._dataset, self._split, self._limit = loaded, dataset, split, limit
        self._options, self._listener, self._cancel = options, listener, cancel
        self._folder: Path | None = None
        self._engines: dict[str, Any] = {}
        #: Of names of the cases and sizes of their files: do two evaluations see the same?
        self.digest = hashlib.sha256()
        self.failures: list[Run] = []
        self.scored = self.resumed = 0

    def keep_in(self, folder: Path, resume: bool) -> None:
        """Keep answers in ``folder``. Raises :class:`omlab.errors.UsageError` if it is of another evaluation."""
        prepare_folder(folder)
        path = folder / RECORD
        ours = self._identity()
        try:
            before = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            before = None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}", remedy="Name another folder with -o") from None
        if before is not None:
            differing = [key for key in ours if not isinstance(before, dict) or before.get(key) != ours[key]]
            if differing:
                raise UsageError(
                    f"{folder} holds an evaluation with another {' and '.join(differing)}",
                    remedy="Name another folder with -o",
                )
            if not resume:
                raise UsageError(
                    f"{folder} holds this evaluation already", remedy="Go on with --resume, or name another folder"
                )
            self._engines = before.get("engines", {})
        self._folder = folder
        self._record()

    def pairs(self) -> Iterator[Pair]:
        """Prediction and reference of every case that has one, as they come."""
        total = self._dataset.size(self._split)
        if self._limit is not None:
            total = min(total, self._limit) if total is not None else None
        for number, item in enumerate(self._dataset.items(self._split)):
            if self._limit is not None and number >= self._limit:
                return
            self._cancel.check()
            self._listener(Progress(item.name, "network", number, total, "cases"))
            try:
                reference = item.truth()
                if reference is None:
                    continue
                # Read once: the model looks at it, and maybe the evaluator's pictures.
                scan = cache(item.case)
                prediction = self._answer(item, scan)
            except Cancelled:
                raise
            except OmlabError as error:
                self._failed(item, error.code, error.message, error.remedy or "", error)
                continue
            except Exception as error:  # a plugin's defect must not end the other cases
                what = f"{type(error).__name__}: {error}"
                self._failed(item, "defect", what, "This is a defect of the plugin or of omlab", error)
                continue
            self.scored += 1
            sizes = [path.stat().st_size for path in item.files if path.is_file()]
            self.digest.update(f"{item.name} {sizes}\n".encode())
            yield Pair(
                name=item.name, prediction=prediction, reference=reference, scan=scan,
                refused=partial(self._refused, item),
            )  # fmt: skip

    def engines(self) -> dict[str, Any]:
        """Graph -> what ran, also where all answers were there already."""
        return self._loaded.engines_used() or self._engines

    def _failed(self, item: Item, code: str, cause: str, remedy: str, error: Exception) -> None:
        self.failures.append(Run(item.name, "failed", code=code, cause=cause, remedy=remedy, error=error))

    def _refused(self, item: Item, error: OmlabError) -> None:
        self.scored -= 1
        self._failed(item, error.code, error.message, error.remedy or "", error)

    def _answer(self, item: Item, scan: Callable[[], Case]) -> Result:
        path = self._place(item)
        state = stamp(item.files)
        if path is not None and path.is_file():
            found = _kept(path, item.name, state)
            if found is not None:
                self.resumed += 1
                return found
        prompts = item.asked() if self._loaded.card.prompts else None
        known = {option.name.replace("-", "_") for option in self._loaded.card.options}
        own = {key: value for key, value in item.options.items() if key.replace("-", "_") in known}
        result = self._loaded.run(scan(), prompts=prompts, options={**own, **self._options}, cancel=self._cancel).result
        if path is not None:
            from omlab.results.keeping import keep

            keep(result, path, {"case": item.name, "stamp": state})
            if not self._engines:
                self._record()
        return result

    def _place(self, item: Item) -> Path | None:
        """File of a case's answer: its name as far as a file can have it, and a digest that tells it from others."""
        if self._folder is None:
            return None
        clean = "".join(c if c.isalnum() or c in "-_." else "_" for c in case_stem(item.name))[-80:]
        digest = hashlib.sha256(item.name.encode()).hexdigest()[:12]
        return self._folder / ANSWERS / f"{clean}-{digest}.zip"

    def _identity(self) -> dict[str, Any]:
        loaded = self._loaded
        return {
            "model": loaded.card.name, "variant": loaded.variant.name, "model_version": loaded.card.version,
            "weights_sha256": loaded.weights_sha256, "options": jsonable(loaded.options(self._options)),
            "dataset": self._dataset.name, "split": self._split or "all",
        }  # fmt: skip

    def _record(self) -> None:
        assert self._folder is not None
        self._engines = self._loaded.engines_used() or self._engines
        record = self._identity() | {"engines": jsonable(self._engines), "omlab": __version__}
        write_text(self._folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False))


def _kept(path: Path, name: str, state: str) -> Result | None:
    """The answer that is there, if it is whole, of this case and of the same files; one that is not is run again."""
    from omlab.results.keeping import kept

    try:
        result, record = kept(path)
    except InputError:
        return None
    return result if record.get("case") == name and record.get("stamp") == state else None
