"""Adapt a model to a dataset: the runner over the adapter hook, and the model directory that it leaves."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omlab import __version__, manifest
from omlab.adapter import TRAINING, with_shared
from omlab.cards import AdapterCard, ModelCard, as_table, from_table
from omlab.dataset import BoundDataset
from omlab.errors import Cancelled, OmlabError, OutputError, UsageError
from omlab.files import write_text
from omlab.loading import LoadedModel, options_of
from omlab.plugins import Registry
from omlab.progress import Listener, silent
from omlab.report import jsonable
from omlab.vocabulary import Kind

REPORT, PAGE = "report.json", "report.html"
#: What a work folder says of the adaptation that it is of.
_PLAN = "adapting.json"


def adapt(
    base: LoadedModel,
    adapter: str,
    dataset: BoundDataset,
    out: str | Path,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    registry: Registry,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Adapt ``base`` to ``dataset`` and leave a model directory at ``out``; returns the adapter's report.

    The directory appears whole or not at all. Until then the work lies beside it in ``.<out>.adapting``, which stays
    after an interruption.

    Parameters
    ----------
    options : of the adapter, and those of every adapter (:data:`omlab.adapter.SHARED`): ``shots``, ``seed``,
        ``duplicates``.
    resume : go on with what an interruption left; begins anew where there is nothing.

    Raises
    ------
    UsageError
        The adapter needs a kind of answer that the base does not give, ``out`` holds other things, another process
        works on it, or what is to be resumed was begun otherwise.
    """
    card = with_shared(registry.card(Kind.ADAPTER, adapter))
    _check_fit(card, base)
    out = Path(out)
    foreign = out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / manifest.NAME).is_file()))
    if foreign:
        raise UsageError(f"{out} exists and is no model directory", remedy="Name another folder with -o")
    if base.folder is not None and out.exists() and out.resolve() == base.folder.resolve():
        raise UsageError(f"{out} is the model that is to be adapted", remedy="Name another folder with -o")
    behind = registry.load(Kind.ADAPTER, adapter)
    filled = options_of(card, options or {})
    if filled["shots"] < 0:
        raise UsageError(f"shots cannot be negative, found {filled['shots']}", remedy="0 takes all training cases")
    about = {
        "base": base.card.name, "base_variant": base.variant.name, "base_weights_sha256": base.weights_sha256,
        "adapter": adapter, "adapter_version": card.version, "dataset": dataset.name, "options": filled,
    }  # fmt: skip
    start = time.perf_counter()
    with _work_folder(out, jsonable(about), resume) as work:
        differs = dict(behind.adapt(base, dataset, work, filled, listener))
        report = {"made": datetime.now(UTC).isoformat(timespec="seconds"), **differs.pop("report", {}), **about}
        report |= {
            "seconds": round(time.perf_counter() - start, 2), "omlab": __version__,
            "python": platform.python_version(), "engines": base.engines_used(),
        }  # fmt: skip
        if base.folder is not None:
            _keep_base(base.folder, work / "base", whole=behind.needs_base_weights)
        tables = _tables(base, adapter, name or out.name, differs)
        write_text(work / manifest.NAME, _toml(tables))
        write_text(work / REPORT, json.dumps(jsonable(report), indent=2))
        write_text(work / PAGE, _page(card, report))
        _tidy(work)
    return jsonable(report)  # type: ignore[no-any-return]


def _check_fit(card: AdapterCard, base: LoadedModel) -> None:
    given = set(base.variant.outputs or base.card.outputs)
    if not given & set(card.base_outputs):
        needs = " or ".join(kind.value for kind in card.base_outputs)
        raise UsageError(
            f"adapter '{card.name}' needs a model that gives {needs}; '{base.card.name}' "
            f"({base.variant.name}) gives {', '.join(sorted(k.value for k in given))}",
            remedy="omlab list models shows others; --variant picks another variant",
        )


@contextmanager
def _work_folder(out: Path, about: Mapping[str, Any], resume: bool) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends well. It stays where work was interrupted that
    can be gone on with."""
    rank = int(os.environ.get("RANK", "0"))  # of several processes on several devices only the first makes the result
    work = out.absolute().with_name(f".{out.name}.adapting" + (f".{rank}" if rank else ""))
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot(out, error) from None
    with _alone(work, out):
        try:
            if work.exists() and not (resume and not rank):
                shutil.rmtree(work)
            elif work.exists():
                _check_same(work, about, out)
            work.mkdir(exist_ok=True)
            write_text(work / _PLAN, json.dumps(about, indent=1))
        except OSError as error:
            raise _cannot(out, error) from None
        try:
            yield work
            (work / _PLAN).unlink()
            if rank:
                shutil.rmtree(work)
            else:
                _put(work, out)
        except BaseException as error:
            stopped = not isinstance(error, OmlabError) or isinstance(error, Cancelled)
            if not (stopped and _resumable(work)):
                shutil.rmtree(work, ignore_errors=True)
            raise


def _cannot(out: Path, error: OSError) -> OutputError:
    return OutputError(f"{out} cannot be made: {error.strerror or error}", remedy="Name another folder with -o")


@contextmanager
def _alone(work: Path, out: Path) -> Iterator[None]:
    """Hold the place against another process; a lock of a process that is gone counts for nothing."""
    import filelock

    lock = filelock.FileLock(work.with_name(work.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"another process is making {out}", remedy="Wait for it, or name another folder") from None
    except OSError as error:
        raise _cannot(out, error) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def interrupted(out: str | Path) -> bool:
    """Is there something at ``out`` that ``resume`` would go on with?"""
    return _resumable(Path(out).absolute().with_name(f".{Path(out).name}.adapting"))


def _resumable(work: Path) -> bool:
    folder = work / TRAINING
    return folder.is_dir() and any(path.is_file() for path in folder.iterdir())


def _check_same(work: Path, about: Mapping[str, Any], out: Path) -> None:
    try:
        before = json.loads((work / _PLAN).read_text("utf-8"))
    except (OSError, ValueError):
        shutil.rmtree(work)
        return
    flat = {**about, **about["options"]}
    flat_before = {**before, **before.get("options", {})}
    for key, value in flat.items():
        if key != "options" and flat_before.get(key) != value:
            raise UsageError(
                f"{out}: what was interrupted there has {key.replace('_', ' ')} {flat_before.get(key)!r}, "
                f"this has {value!r}",
                remedy="Repeat the command as it was, or leave --resume out to begin anew",
            )


def _put(work: Path, out: Path) -> None:
    """Let the folder take its place; what was there goes last."""
    old = work.with_name(work.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    work.replace(out)
    shutil.rmtree(old, ignore_errors=True)


def _tidy(work: Path) -> None:
    """Remove what only a resumption would need; the log stays."""
    folder = work / TRAINING
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.suffix != ".jsonl":
            path.unlink()


def _keep_base(folder: Path, target: Path, *, whole: bool) -> None:
    """The base directory inside the new one: all of it, or what its architecture needs."""

    def leave(_: str, names: list[str]) -> list[str]:
        return [n for n in names if n in (TRAINING, PAGE, REPORT) or (n.endswith(".safetensors") and not whole)]

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=leave)


def _tables(base: LoadedModel, adapter: str, name: str, differs: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the new model: the base's card with what the adapter changed."""
    table = as_table(base.card)
    for field in ("plugin", "version", "reported", "options", "prompts", "labels", "upstream"):
        table.pop(field, None)
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in name.lower()).strip("-_.") or "adapted"
    table |= {"name": clean, "variants": [{"name": "adapted"}]}
    table |= {key.replace("-", "_"): value for key, value in differs.items()}
    from_table(ModelCard, table)  # an invalid card is the adapter's defect and should fail here, not at the next load
    adapted = {
        "adapter": adapter, "model": base.card.name, "variant": base.variant.name,
        "base_weights_sha256": base.weights_sha256,
    }  # fmt: skip
    if base.folder is not None:
        adapted["base"] = "base"
    return {"api": manifest.API, "model": [table], "adapted": adapted}


def _page(card: AdapterCard, report: Mapping[str, Any]) -> str:
    """The report as a page, with learning curves where there are some."""
    from omlab.curves import draw
    from omlab.page import html
    from omlab.report import Report, Value

    history = report.get("history") or ()
    numbers = {
        key: value for key, value in report.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    counts = {split: report.get(f"{split}_images", 1) for split in ("train", "val", "test")}
    summary = {
        key.replace("_", " "): Value(value=float(value), n=counts.get(key.partition("_")[0], 1))
        for key, value in numbers.items()
    }
    failed = [f"{key[:-7]}: {line}" for key in report if key.endswith("_failed") for line in report[key]]
    page = Report(
        evaluator=card.name, title=f"{card.title or card.name} of {report['base']} on {report['dataset']}",
        summary=summary, cases=list(history), options=report["options"],
        environment={
            key: report[key] for key in ("omlab", "python", "base", "base_weights_sha256", "dataset", "made")
        } | {key: value for key, value in report.items() if key in ("training", "torch", "accelerate", "engines")},
        warnings=[*report.get("remarks", ()), *failed],
        illustration=(lambda title: draw(history, title, report.get("best_epoch"))) if history else None,
    )  # fmt: skip
    return html(page, rows="Epochs") if history else html(page)


def _toml(tables: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(tables)
