"""Run a model over many files: one folder a case, one row a case, and one bad case harms no other.

The next case is read while the present one runs; a model that answers several cases together
(:meth:`omlab.model.Model.together`) is given so many at once. ``result.json`` is written last, so a case folder that
has one is whole; :func:`run` with ``resume`` skips those.
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab import __version__, cases_table
from omlab.errors import Cancelled, OmlabError, OutputError
from omlab.files import stamp
from omlab.loading import LoadedModel, Outcome
from omlab.memory import peak_mb
from omlab.progress import CancelToken, Listener, silent
from omlab.report import jsonable

if TYPE_CHECKING:
    from omlab.cases import Case, Found
    from omlab.prompts import Prompts

RESULT = "result.json"


@attrs.frozen
class Run:
    """What came of one case.

    Attributes
    ----------
    name : of the case; also of its folder.
    status : ``"done"``, ``"skipped"`` (was whole already) or ``"failed"``.
    folder : where its files are; ``None`` if it failed.
    headline : the result in a few words.
    seconds : wall time of the case.
    warnings : what is odd about the case, and the notes of its result.
    code, cause, remedy : of a failure.
    error : the exception itself, for those who want the traceback.
    """

    name: str
    status: str
    source: str = ""
    folder: Path | None = None
    headline: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    code: str = ""
    cause: str = ""
    remedy: str = ""
    error: BaseException | None = None

    def as_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        row = attrs.asdict(self, filter=lambda a, v: a.name != "error" and v not in ("", None, ()))
        return row | {"folder": str(self.folder)} if self.folder else row


def run(
    model: LoadedModel,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    formats: Sequence[str] | None = None,
    picture: bool = True,
    resume: bool = False,
    reading: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    prompts: Any = None,
    listener: Listener = silent,
    cancel: CancelToken | None = None,
) -> Iterator[Run]:
    """Run ``model`` over files, folders and DICOM series, writing one folder a case below ``out``, and of several cases
    the table ``cases.csv``.

    Parameters
    ----------
    formats : formats of the result; that of the input without any.
    picture : also draw ``overview.png``.
    resume : skip cases whose folder is whole and was made from the same file, model, options and prompts.
    reading : arguments of :func:`omlab.cases.read` (``frame``, ``series``, ``nonfinite``).
    prompts : what is asked of a promptable model, as :meth:`omlab.loading.LoadedModel.__call__` takes it; objects of
        single cases by the name of the file or of the case's folder.

    Yields
    ------
    One :class:`Run` a case, in order, as it is finished. A case that fails is a row, not an exception.
    """
    from omlab.cases import find

    out = Path(out)
    reading = dict(reading or {})
    filled = model.options(options or {})  # a wrong option is one error, not one a case
    asked = model.asked(prompts, filled)  # and so is a wrong prompt
    prepare_folder(out)
    cancel = cancel or CancelToken()
    found = find([Path(i) for i in inputs], series=reading.get("series"), kinds=model.card.inputs)
    jobs = [
        _Job(model, item, out, formats, picture, resume, reading, filled, asked, listener, cancel) for item in found
    ]
    if any(item.error is None for item in found) and not resume:
        model.engines.warm_up()
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="omlab-read")
    rows: list[Run] = []
    try:
        size = 1 if asked is not None else max(1, model.model.together(filled))
        groups = _grouped(jobs, size)
        ahead: list[Future[Case | None]] = []
        for number, group in enumerate(groups):
            present = ahead or [reader.submit(job.read) for job in group]
            ahead = [reader.submit(job.read) for job in groups[number + 1]] if number + 1 < len(groups) else []
            answers = _together(model, group, present, filled, listener, cancel)
            for job, reading in zip(group, present, strict=True):
                rows.append(job.finish(reading, answers.get(job.found.name)))
                yield rows[-1]
        if len(rows) > 1:
            cases_table.write(out, rows, RESULT)
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


@attrs.frozen
class _Answer:
    """What came of a case that was answered together with others, and its share of the time."""

    outcome: Outcome | OmlabError
    seconds: float


def _grouped(jobs: Sequence[_Job], size: int) -> list[list[_Job]]:
    """Jobs in order, ``size`` a group that can be tried; what is known to be no case takes no place."""
    groups: list[list[_Job]] = []
    good = size
    for job in jobs:
        if good >= size:
            groups.append([])
            good = 0
        groups[-1].append(job)
        good += job.found.error is None
    return groups


def _together(
    model: LoadedModel,
    jobs: Sequence[_Job],
    readings: Sequence[Future[Case | None]],
    options: Mapping[str, Any],
    listener: Listener,
    cancel: CancelToken,
) -> dict[str, _Answer]:
    """Answers of those of ``jobs`` that can be read, by name; empty where each is to be answered by itself: there is
    only one, or together they failed as no single case should."""
    if len(jobs) < 2:
        return {}
    cases: dict[str, Case] = {}
    for job, reading in zip(jobs, readings, strict=True):
        with suppress(Exception):  # told when the job is finished
            case = reading.result()
            if case is not None:
                cases[job.found.name] = case
    if len(cases) < 2:
        return {}
    start = time.perf_counter()
    try:
        outcomes = model.run_many(list(cases.values()), options=options, listener=listener, cancel=cancel)
    except Cancelled:
        raise
    except Exception:  # one by one tells whose fault it is, and lets the others go on
        return {}
    share = (time.perf_counter() - start) / len(cases)
    return {name: _Answer(outcome, share) for name, outcome in zip(cases, outcomes, strict=True)}


def prepare_folder(out: Path) -> None:
    """Make the output folder and make sure that it can be written. Raises :class:`omlab.errors.OutputError`."""
    import tempfile

    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return
    except FileExistsError:
        raise OutputError(f"{out} is a file, a folder was expected", remedy="Name another folder with -o") from None
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}", remedy="Name another folder with -o") from None


@attrs.frozen(eq=False)
class _Job:
    model: LoadedModel
    found: Found
    out: Path
    formats: Sequence[str] | None
    picture: bool
    resume: bool
    reading: dict[str, Any]
    options: dict[str, Any]
    prompts: Prompts | None
    listener: Listener
    cancel: CancelToken
    read_seconds: list[float] = attrs.field(factory=list)

    @property
    def folder(self) -> Path:
        return self.out / self.found.name

    def read(self) -> Case | None:
        if self.found.error is not None:
            raise self.found.error
        if self.resume and self._whole() is not None:
            return None
        start = time.perf_counter()
        case = self.found.read(kind=self.model.card.inputs, **self.reading)
        self.read_seconds.append(time.perf_counter() - start)
        return case  # type: ignore[no-any-return]

    def finish(self, reading: Future[Case | None], answer: _Answer | None = None) -> Run:
        """Answer, unless that was done with others, and write."""
        start = time.perf_counter() - (answer.seconds if answer else 0)
        source = str(self.found.path)
        try:
            case = reading.result()
            if case is None:
                record = self._whole() or {}
                return Run(self.found.name, "skipped", source, self.folder, record.get("headline", ""))
            outcome = self._outcome(case, answer)
            head = self._write(outcome)
            notes = (*case.source.warnings, *outcome.result.notes)
            return Run(self.found.name, "done", source, self.folder, head, time.perf_counter() - start, notes)
        except Cancelled:
            raise
        except OmlabError as error:
            return Run(
                self.found.name, "failed", source, None, "", time.perf_counter() - start, (),
                error.code, error.message, error.remedy or "", error,
            )  # fmt: skip
        except MemoryError as error:
            return Run(
                self.found.name, "failed", source, None, "", time.perf_counter() - start, (),
                "memory", f"{self.found.name}: not enough memory ({peak_mb():.0f} MB in use)", "Close other programs",
                error,
            )  # fmt: skip
        except Exception as error:  # a plugin's defect must not end the other cases
            return Run(
                self.found.name, "failed", source, None, "", time.perf_counter() - start, (),
                "defect", f"{self.found.name}: {type(error).__name__}: {error}",
                "This is a defect of the plugin or of omlab; run again with --debug", error,
            )  # fmt: skip

    def _outcome(self, case: Case, answer: _Answer | None) -> Outcome:
        if answer is None:
            return self.model.run(
                case, prompts=self._asked(), options=self.options, listener=self.listener, cancel=self.cancel,
                scratch=self.folder,
            )  # fmt: skip
        if isinstance(answer.outcome, OmlabError):
            raise answer.outcome
        return answer.outcome

    def _write(self, outcome: Outcome) -> str:
        from omlab.results import headline, write
        from omlab.results.picture import draw

        stages = {name: dict(row) for name, row in outcome.stages.items()}
        if self.read_seconds:
            stages = {"read": {"seconds": self.read_seconds[0]}} | stages
        start = time.perf_counter()
        card = self.model.card
        prepare_folder(self.folder)
        (self.folder / RESULT).unlink(missing_ok=True)  # from here on the folder is not whole
        files = write(
            outcome.result,
            outcome.case,
            self.folder,
            formats=self.formats,
            model_name=card.name,
            model_version=card.version,
        )
        if self.picture:
            drawn = draw(
                outcome.result,
                outcome.case,
                self.folder / "overview.png",
                title=card.title or card.name,
                prompts=outcome.prompts,
            )
            if drawn is not None:
                files = files | {"picture": drawn}
        stages["write"] = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}
        head = headline(outcome.result)
        record = self._record(outcome, stages, files, head)
        from omlab.files import write_text

        write_text(self.folder / RESULT, json.dumps(jsonable(record), indent=2, ensure_ascii=False))
        return head

    def _record(
        self, outcome: Outcome, stages: Mapping[str, Any], files: Mapping[str, Path], head: str
    ) -> dict[str, Any]:
        from omlab.results import summarise

        card, source = self.model.card, outcome.case.source
        return {
            "omlab": __version__,
            "headline": head,
            "model": {
                "name": card.name, "variant": self.model.variant.name, "plugin": card.plugin, "version": card.version,
                "weights_sha256": self.model.weights_sha256, "folder": str(self.model.folder or "") or None,
            },
            "input": {
                "path": str(self.found.path), "format": source.format, "stamp": self._stamp(),
                "details": dict(source.details), "warnings": list(source.warnings),
            },
            "options": outcome.options,
            "option_files": self._option_files(),
            "prompts": self._prompts_record(),
            "reading": self.reading,
            "result": summarise(outcome.result),
            "engines": outcome.engines,
            "stages": stages,
            "files": {kind: path.name for kind, path in files.items()},
            "sizes": {path.name: _size(path) for path in files.values()},
            "versions": {"python": platform.python_version(), **_versions(outcome)},
            "platform": platform.platform(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip

    def _stamp(self) -> str:
        """Changes when the input does."""
        return stamp(self.found.files or (self.found.path,))

    def _option_files(self) -> dict[str, str]:
        """Option that names a file -> what changes when the file does."""
        return {name: stamp([value]) for name, value in self.options.items() if isinstance(value, Path)}

    def _asked(self) -> Prompts | None:
        """What is asked of this case. Raises :class:`omlab.errors.InputError` if nothing is."""
        if self.prompts is None:
            return None
        from omlab.files import case_stem

        path = self.found.path
        return self.prompts.for_case(self.found.name, path.name, case_stem(path.name))

    def _prompts_record(self) -> dict[str, Any] | None:
        """What was asked, as it was given, and a stamp that changes with the files of its masks, too."""
        asked = self._asked()
        if asked is None:
            return None
        from omlab.prompts import stamp

        return {**asked.as_json(), "stamp": stamp(asked)}

    def _whole(self) -> dict[str, Any] | None:
        """The record of a finished case that need not be done again; ``None`` if it must."""
        try:
            record = json.loads((self.folder / RESULT).read_text("utf-8"))
            sizes = {name: _size(self.folder / name) for name in record["sizes"]}
            same = (
                record["model"]["name"] == self.model.card.name
                and record["model"]["variant"] == self.model.variant.name
                and record["model"]["weights_sha256"] == self.model.weights_sha256
                and record["model"]["version"] == self.model.card.version
                and record["input"]["stamp"] == self._stamp()
                and record["options"] == jsonable(self.options)
                and record["option_files"] == self._option_files()
                and record["reading"] == jsonable(self.reading)
                and record.get("prompts") == jsonable(self._prompts_record())
                and record["sizes"] == sizes
                and set(self.formats or ()) <= set(record["files"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if same else None


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if path == file or file.is_file())


def _versions(outcome: Outcome) -> dict[str, str]:
    import numpy

    versions = {"numpy": numpy.__version__}
    for used in outcome.engines.values():
        engine = used.get("engine", {})
        if engine.get("backend"):
            versions[engine["backend"]] = engine.get("version", "")
    return versions
